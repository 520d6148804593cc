-- journal.lua -- what a handler has done, kept while it goes on: record a step, read them back, begin a new run.
--
-- A step that has been recorded is never run again: recording it a second time answers what stands there. One call
-- records it, renews the lease, and takes progress, frames and what was spent along. Free text and results are opaque.

-- The summary is of a run, too.
journal.on_restart(function(p, x) redis.call("UNLINK", keys.summary(p, x.id)) end)

-- A renewal that gains less than this share of the lease is not written: steps come by the thousand.
local GAIN = 16

local function gains(p, at, ttl_ms) return ttl_ms > 0 and at - p.now <= ttl_ms - ttl_ms / GAIN end

-- Extend the lease where that gains something. Answers its end, and whether that is new.
local function extended(p, x, at, ttl_ms)
  if not gains(p, at, ttl_ms) then return at, false end
  ttl_ms = policy.of(p, x).lease_ttl_ms or ttl_ms
  local expires = p.now + ttl_ms
  if x.attempt_deadline_at and tonumber(x.attempt_deadline_at) < expires then expires = tonumber(x.attempt_deadline_at) end
  return math.max(at, expires), expires > at
end

-- What is written to the record, in one write: the lease's new end, that its holder was heard, a new journal, progress.
local function note(p, x, expires, longer, began, progress_pct)
  local heard = x.heard ~= x.lease_epoch
  if longer or heard or began or progress_pct then
    record.write(p, x, longer and "at", expires, heard and "heard", x.lease_epoch, began and "journal", began,
      began and x.unpinned and "unpinned", false, progress_pct and "progress", progress_pct)
  end
  if longer then timers.extend(p, x) end
end

-- Whether an entry that stands already is the answer: a final one always, and an intent of another lease for a new intent.
local function stands(kept, status, epoch)
  local _, _, was, _, _, _, value = journal.unpack(kept)
  if was == "ok" or was == "fatal" then return true end
  return was == "intent" and status == "intent" and value ~= epoch
end

-- Whether what is to be recorded is what was recorded last: a call that is sent again, since each try counts itself.
local function is_same(kept, x, status, value)
  local _, _, was, _, attempt_no, _, has = journal.unpack(kept)
  return was == status and has == value and attempt_no == (x.attempt or "0")
end

-- What the step has spent, a line for each budget: `<budget id> <key> <amounts>`. Answers { target, uuid, key, amounts }
-- of each, or nil when a line cannot be read. Whether the amounts can, the budget's own partition finds out.
local function spends_of(text)
  local rows = {}
  if #text > LIMITS.ADMISSION_BYTES then return nil end
  for line in string.gmatch(text .. "\n", "([^\n]*)\n") do
    local target, uuid, key, amounts = string.match(line, "^({b:%d+}):([%x%-]+) ([%w._%-]+) ([%w_.,=%-]+)$")
    if not target or #uuid ~= 36 or #key > LIMITS.STEP_KEY_BYTES or #rows >= LIMITS.ADMISSIONS_N then return nil end
    rows[#rows + 1] = { target, uuid, key, amounts }
  end
  return rows
end

-- Record a step under the lease. The same key again answers the entry that stands, if it is final.
define {
  name    = "ff_record_step",
  args    = { "execution_id:id", "fence:fence", "step:str", "kind:str", "name:str", "status:str", "value:blob?", "version:int",
              "lease_ttl_ms:int", "progress_pct:int?", "progress_message:str?", "spends:str?",
              "frames:rows(frame_type:str,mode:str,payload:blob,encoding:str?,correlation_id:str?)" },
  returns = { "recorded", "replayed" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "invalid_input", "payload_too_large",
              "invalid_frame_type", "journal_full" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_leased(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence)
    if refusal then return refusal end
    local key, status = a.step, a.status
    -- An intent keeps the lease it began under: who asks again under that lease is told yes, everybody else what stands.
    local value = status == "intent" and x.lease_epoch or a.value or ""
    refusal = journal.check(key, a.kind, status, a.name, value)
    if refusal then return refusal end
    if a.version < 1 or a.version > LIMITS.VERSION_MAX then return reply.reject("invalid_input", "version") end
    if a.lease_ttl_ms ~= 0 and (a.lease_ttl_ms < LIMITS.LEASE_TTL_MIN_MS or a.lease_ttl_ms > LIMITS.LEASE_TTL_MAX_MS) then
      return reply.reject("invalid_input", "lease_ttl_ms")
    end
    if a.progress_pct and (a.progress_pct < 0 or a.progress_pct > 100) then return reply.reject("invalid_input", "progress_pct") end
    for i = 1, #a.frames do
      refusal = stream.refusal(a.frames[i])
      if refusal then return refusal end
    end
    local spends = a.spends and spends_of(a.spends)
    if a.spends and not spends then return reply.reject("invalid_input", "spends") end
    local seq, kept, count, bytes = journal.look(p, x, key)
    local at = tonumber(x.at)
    -- Most steps are neither the first nor due for a renewal, and carry nothing else: they write nothing to the record.
    if x.partial and (count == 0 or a.progress_pct or a.progress_message or #a.frames > 0 or x.heard ~= x.lease_epoch
      or gains(p, at, a.lease_ttl_ms)) then x = record.load_all(p, x.id) end
    local expires, longer = extended(p, x, at, a.lease_ttl_ms)
    if kept and stands(kept, status, x.lease_epoch) then
      note(p, x, expires, longer)
      fence.replayed(p)
      return { "replayed", kept, expires, x.cancel_until and tonumber(x.cancel_until) or 0 }
    end
    local entry = journal.pack(p, x, key, a.kind, status, a.name, value)
    refusal = journal.full(seq and count or count + 1, bytes + #entry - (kept and #kept or 0))
    if refusal then return refusal end
    local n, began = journal.write(p, x, key, seq, kept, count, bytes, entry, a.version)
    note(p, x, expires, longer, began, a.progress_pct)
    if a.progress_message then record.describe(p, x, "progress", names.cut(a.progress_message, LIMITS.REASON_BYTES)) end
    if (#a.frames > 0 or a.spends) and not (kept and is_same(kept, x, status, value)) then
      stream.append_all(p, x, a.frames)
      for i = 1, spends and #spends or 0 do
        local one = spends[i]
        outbox.add(p, one[1], "spend", one[2] .. " " .. p.id_prefix .. x.id .. " " .. x.lease_epoch .. " " .. one[3] .. " " .. one[4])
      end
    end
    return { "recorded", n, expires, x.cancel_until and tonumber(x.cancel_until) or 0 }
  end,
}

-- A page of recorded steps, in the order of their numbers: for a worker that goes on, and for people.
define {
  name    = "ff_read_journal",
  args    = { "execution_id:id", "from_seq:int", "limit:int" },
  returns = { "journal" },
  errors  = { "execution_not_found", "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if a.from_seq < 1 then return reply.reject("invalid_input", "from_seq") end
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local count, has = journal.size(p, x)
    local upto = math.min(count, a.from_seq + a.limit - 1)
    local entries = journal.page(p, x, a.from_seq, upto, LIMITS.JOURNAL_HEAD_BYTES, 1, has / math.max(1, count))
    return { "journal", x.journal or "", count, entries }
  end,
}

-- End this run and begin the next, with a new payload and nothing recorded. Who waits for the execution goes on waiting.
define {
  name    = "ff_continue_as",
  args    = { "execution_id:id", "fence:fence", "payload:blob", "payload_encoding:str?" },
  returns = { "continued" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "payload_too_large", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence, "continue")
    if refusal == "replay" then
      fence.replayed(p)
      return { "continued", p.id_prefix .. x.id, record.number(x, "run"), x.state, 1 }
    end
    if refusal then return refusal end
    if #a.payload > LIMITS.PAYLOAD_BYTES then return reply.reject("payload_too_large", #a.payload) end
    if a.payload_encoding and not attempt.fits(a.payload_encoding) then return reply.reject("invalid_input", "payload_encoding") end
    -- What undoes an execution does not begin it anew.
    if x.pending_outcome then return reply.reject("terminal", x.pending_outcome) end
    if attempt.cancelled_instead(p, x, "continue") then return { "continued", p.id_prefix .. x.id, record.number(x, "run"), x.state, 0 } end
    attempt.close(p, x, "ended_success", "continued")
    journal.restart(p, x)
    redis.call("SET", keys.payload(p, x.id), a.payload)
    if x.detail then redis.call("HDEL", keys.detail(p, x.id), "reason", "category", "traceback", "progress") end
    local deadline = x.deadline_ms and p.now + tonumber(x.deadline_ms)
    if deadline then timers.set(p, "deadline", x.id, deadline) end
    state.move(p, x, "ready", "continued", "next", "initial", "run", record.number(x, "run") + 1, "ended_by", "continue",
      "payload_encoding", a.payload_encoding or false, "deadline_at", deadline or false, "turn", queue.turn(p, x, true), "eligible_at", p.now,
      "retries", false, "crashes", false, "unseen", false, "hand_backs", false, "progress", false,
      "attempt_deadline_at", false, "attempt_left_ms", false, "moved_at", p.now)
    return { "continued", p.id_prefix .. x.id, record.number(x, "run"), x.state, 0 }
  end,
}

-- A worker takes an execution that no code is known to have begun: from here on it is of that worker's version of the task.
define {
  name    = "ff_pin_version",
  args    = { "execution_id:id", "fence:fence", "version:int" },
  returns = { "pinned" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "invalid_input", "version_pinned" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence)
    if refusal then return refusal end
    if a.version < 1 or a.version > LIMITS.VERSION_MAX then return reply.reject("invalid_input", "version") end
    local version = tonumber(x.version or "1")
    local first = x.attempt == "0" and x.next == "initial" and not x.journal
    if not x.unpinned and not first and a.version ~= version then return reply.reject("version_pinned", version) end
    fence.heard(p, x)
    if not x.unpinned and a.version == version then fence.replayed(p)
    else record.write(p, x, "version", a.version ~= 1 and a.version or false, "unpinned", false) end
    return { "pinned", a.version }
  end,
}

-- The handler is about to end well and has left recorded steps unasked for: its code has changed since, or decides by
-- what is not recorded. Nothing follows from it but an event, for people; sent again, it is told again.
define {
  name    = "ff_note_unclaimed",
  args    = { "execution_id:id", "fence:fence", "count:int", "names:str" },
  returns = { "noted" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence)
    if refusal then return refusal end
    if a.count < 1 or a.count > LIMITS.STEPS_N then return reply.reject("invalid_input", "count") end
    if a.names == "" or string.find(a.names, "%c") then return reply.reject("invalid_input", "names") end
    fence.heard(p, x)
    events.add(p, x, x.state, x.state, "steps_unclaimed " .. a.count .. " " .. names.cut(a.names, 200))
    return { "noted" }
  end,
}
