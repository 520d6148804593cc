-- suspension.lua -- suspend, resume, and what happens when the time is over.
--
-- Whoever suspends gives up the lease; the same attempt goes on when its condition holds, with what is left of its time.
-- Callers send the compiled condition and digests of tokens, never a token or a secret. Sent again, by its fence, its
-- id or its idempotency key, a call answers what it answered first.

local PUBLIC = { ready = "waiting", reclaimable = "waiting", revoked = "waiting", granted = "waiting", blocked = "waiting",
  delayed = "delayed", active = "active", suspended = "suspended" }

-- What every suspension must have right, whoever asks; a refusal, or nil. timeout_at: nil for none.
local function check(p, x, a, waitpoints_n)
  if a.suspension_id == "" or #a.suspension_id > LIMITS.LEASE_ID_BYTES or string.find(a.suspension_id, "[%c%s]") then return reply.reject("invalid_input", "suspension_id") end
  if not suspension.REASONS[a.reason_code] then return reply.reject("invalid_input", "reason_code") end
  if not suspension.BEHAVIORS[a.timeout_behavior] then return reply.reject("invalid_input", "timeout_behavior") end
  local tree = condition.read(a.condition)
  if not tree then return reply.reject("invalid_input", "condition: send what ffcore.conditions compiles") end
  if waitpoints_n > LIMITS.WAITPOINTS_N or tree.waitpoints_n > waitpoints_n then return reply.reject("invalid_input", "waitpoints: the condition names " .. tree.waitpoints_n) end
  if tree.needs_time and not a.timeout_at then return reply.reject("invalid_input", "timeout_only_without_deadline") end
  if a.timeout_at and (a.timeout_at + LIMITS.TIMEOUT_PAST_MS < p.now or a.timeout_at > p.now + LIMITS.SPAN_MAX_MS) then
    return reply.reject("invalid_input", "timeout_at")
  end
end

-- Ids of waitpoints, each once. What they are is looked at where they are opened or looked up.
local function check_ids(rows)
  local seen = {}
  for i = 1, #rows do
    local row = rows[i]
    if row.bad then return reply.reject("invalid_input", row.bad) end
    local id = row.waitpoint_id
    if #id ~= 36 or seen[id] then return reply.reject("invalid_input", "waitpoint_id") end
    seen[id] = true
  end
end

local function used(p, x, rows)
  for i = 1, #rows do
    if not rows[i].fresh then
      local refusal = waitpoints.refuse_use(p, x, rows[i].waitpoint_id)
      if refusal then return refusal end
    end
  end
end

-- Waitpoints as the answer names them: id, key, kid. One that is forgotten by now has neither key nor kid.
local function named(p, x, ids)
  local out = {}
  for i = 1, #ids do
    local row = waitpoints.load(p, x, ids[i]) or {}
    out[i] = { ids[i], row.key or "", row.kid or "" }
  end
  return out
end

-- Suspend, as a worker with its fence or as an operator without one (whoever holds the lease is told to stop). Fresh
-- waitpoints are opened by this call; the others must be pending. Signals they have kept count: if they are enough, the
-- lease is kept.
define {
  name    = "ff_suspend",
  args    = { "execution_id:id", "fence:fence?", "attempt_index:int?", "suspension_id:str", "condition:blob", "reason_code:str",
              "requested_by:str", "timeout_at:int?", "timeout_behavior:str", "consume_matched_signals:bool",
              "retain_signal_buffer_until_closed:bool", "close_waitpoint_on_resume:bool", "resume_delay_ms:int?",
              "continuation_metadata_pointer:str?", "idempotency_key:str?",
              "waitpoints:rows(waitpoint_id:str,waitpoint_key:str,kid:str?,token_digest:str?,fresh:bool)" },
  returns = { "suspended", "already_satisfied" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "fence_required", "no_active_lease",
              "already_suspended", "invalid_lease_for_suspend", "invalid_input", "invalid_waitpoint_key", "invalid_waitpoint_for_execution",
              "waitpoint_already_exists", "waitpoint_limit_exceeded", "invalid_kid", "waitpoint_not_found", "waitpoint_not_pending",
              "pending_waitpoint_expired", "signal_limit_exceeded" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if a.idempotency_key and #a.idempotency_key > LIMITS.KEY_BYTES then return reply.reject("invalid_input", "idempotency_key") end
    local key = a.idempotency_key ~= "" and a.idempotency_key or nil
    local outcome, id, ids, held, ring = suspension.answered(p, x, a.suspension_id, key)
    if outcome then
      fence.replayed(p)
      return { outcome, id, named(p, x, ids), held, 1 }
    end
    if not suspension.REQUESTERS[a.requested_by] then return reply.reject("invalid_input", "requested_by") end
    if x.state == "suspended" and (not a.fence or a.fence == record.fence(x)) then return reply.reject("already_suspended", "since it waits") end
    local refusal = fence.resolve(p, x, a.fence, a.requested_by == "worker" and "" or "operator_override", nil)
    if refusal then return refusal end
    if a.attempt_index and a.attempt_index ~= record.number(x, "attempt") then return reply.reject("invalid_lease_for_suspend", "attempt " .. x.attempt .. " runs") end
    refusal = check(p, x, a, #a.waitpoints) or check_ids(a.waitpoints)
    if refusal then return refusal end
    local delay = a.resume_delay_ms
    if delay and (delay < 0 or delay > LIMITS.SPAN_MAX_MS) then return reply.reject("invalid_input", "resume_delay_ms") end
    if a.continuation_metadata_pointer and #a.continuation_metadata_pointer > LIMITS.POINTER_BYTES then return reply.reject("invalid_input", "continuation_metadata_pointer") end
    refusal = used(p, x, a.waitpoints)
    if refusal then return refusal end
    local opened, list, fresh = {}, {}, {}
    for i = 1, #a.waitpoints do
      local row = a.waitpoints[i]
      list[i], fresh[i] = row.waitpoint_id, row.fresh
      if row.fresh then
        if waitpoints.load(p, x, row.waitpoint_id) then return reply.reject("waitpoint_already_exists", row.waitpoint_id) end
        opened[#opened + 1] = { id = row.waitpoint_id, key = row.waitpoint_key, kid = row.kid, digest = row.token_digest }
      elseif row.waitpoint_key ~= "" and row.waitpoint_key ~= waitpoints.load(p, x, row.waitpoint_id).key then
        -- The condition was compiled with a name this waitpoint does not have.
        return reply.reject("invalid_waitpoint_for_execution", "its key is another one")
      end
    end
    refusal = waitpoints.refuse_open(p, x, opened)
    if refusal then return refusal end
    local spec = { id = a.suspension_id, condition = a.condition, waitpoints = list, fresh = fresh, reason_code = a.reason_code,
      requested_by = a.requested_by, behavior = a.timeout_behavior, timeout_at = a.timeout_at, consume = a.consume_matched_signals,
      close = a.close_waitpoint_on_resume, retain = a.retain_signal_buffer_until_closed, resume_delay_ms = delay,
      pointer = a.continuation_metadata_pointer, key = key, ring = ring }
    local got
    got, refusal = suspension.weigh(p, x, spec)
    if refusal then return refusal end
    if not got.met and attempt.cancelled_instead(p, x, "suspend") then return reply.reject("terminal", "cancelled") end
    local holder = not a.fence and record.worker(x)
    for i = 1, #opened do waitpoints.open(p, x, opened[i]) end
    outcome = suspension.begin(p, x, spec, got)
    if outcome == "already_satisfied" and a.fence then fence.heard(p, x) end
    if holder and outcome == "suspended" then wake.worker(p, holder, "revoked " .. p.id_prefix .. x.id) end
    return { outcome, a.suspension_id, named(p, x, list), record.fence(x), 0 }
  end,
}

-- What the journal knows of a wait under this key: what it ended with; or a refusal, when it may not be recorded there.
local function recorded(p, x, step)
  local _, entry, count, bytes = journal.look(p, x, step)
  if not entry then return nil, journal.full(count + 1, bytes) end
  local _, kind, status, _, _, _, value = journal.unpack(entry)
  if kind == "wait" and status == "ok" then return value end
  return nil, reply.reject("invalid_input", "the step of this key is recorded as a " .. tostring(kind))
end

-- What a handler waits with: waitpoints it has opened before, or none to sleep. The step says where in the handler it
-- waits: once the wait is over, its journal says with what, and the same call answers that.
define {
  name    = "ff_wait",
  args    = { "execution_id:id", "fence:fence", "suspension_id:str", "step:str", "step_name:str", "version:int", "condition:blob",
              "timeout_ms:int?", "timeout_behavior:str", "reason_code:str", "close_waitpoints:bool", "waitpoints:rows(waitpoint_id:str)" },
  returns = { "suspended", "already_satisfied" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "invalid_input", "journal_full",
              "waitpoint_not_found", "waitpoint_not_pending", "pending_waitpoint_expired", "signal_limit_exceeded" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence, "suspend")
    if refusal == "replay" then
      if state.is_terminal(x.state) then return reply.reject("terminal", x.state) end
      fence.replayed(p)
      return { "suspended", tonumber(x.suspend_until or "0") }
    end
    if refusal then return refusal end
    refusal = journal.check(a.step, "wait", "ok", a.step_name, "")
    if refusal then return refusal end
    if a.version < 1 or a.version > LIMITS.VERSION_MAX then return reply.reject("invalid_input", "version") end
    if a.timeout_ms and (a.timeout_ms < 0 or a.timeout_ms > LIMITS.SPAN_MAX_MS) then return reply.reject("invalid_input", "timeout_ms") end
    a.timeout_at = a.timeout_ms and p.now + a.timeout_ms
    local value
    value, refusal = recorded(p, x, a.step)
    if value then
      -- It is over already: the answer was lost, or the handler runs again without having looked.
      fence.heard(p, x)
      fence.replayed(p)
      return { "already_satisfied", value }
    end
    refusal = refusal or check(p, x, a, #a.waitpoints) or check_ids(a.waitpoints) or used(p, x, a.waitpoints)
    if refusal then return refusal end
    local list = {}
    for i = 1, #a.waitpoints do list[i] = a.waitpoints[i].waitpoint_id end
    local spec = { id = a.suspension_id, condition = a.condition, waitpoints = list, reason_code = a.reason_code, requested_by = "worker",
      behavior = a.timeout_behavior, timeout_at = a.timeout_at, consume = true, close = a.close_waitpoints, retain = true,
      step = a.step, name = a.step_name, version = a.version }
    local got
    got, refusal = suspension.weigh(p, x, spec)
    if refusal then return refusal end
    if not got.met and attempt.cancelled_instead(p, x, "suspend") then return reply.reject("terminal", "cancelled") end
    local outcome
    outcome, value = suspension.begin(p, x, spec, got)
    if outcome == "suspended" then return { "suspended", a.timeout_at or 0 } end
    fence.heard(p, x)
    return { "already_satisfied", value }
  end,
}

-- Let one execution go on: a pause is taken back; without one, trigger_type `operator` is an operator's word, which meets
-- what waits for one and ends a suspension in which nothing does. Any other trigger ends it as it stands.
define {
  name    = "ff_resume_execution",
  args    = { "execution_id:id", "trigger_type:str", "resume_delay_ms:int" },
  returns = { "resumed" },
  errors  = { "execution_not_found", "terminal", "execution_not_suspended", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if a.trigger_type ~= "signal" and a.trigger_type ~= "operator" and a.trigger_type ~= "auto_resume" then return reply.reject("invalid_input", "trigger_type") end
    if a.resume_delay_ms < 0 or a.resume_delay_ms > LIMITS.SPAN_MAX_MS then return reply.reject("invalid_input", "resume_delay_ms") end
    if state.is_terminal(x.state) then return reply.reject("terminal", x.state) end
    if x.paused then state.unpause(p, x, "resumed", a.resume_delay_ms)
    elseif x.state == "suspended" then suspension.approve(p, x, a.resume_delay_ms, a.trigger_type ~= "operator")
    else return reply.reject("execution_not_suspended", x.state) end
    return { "resumed", PUBLIC[x.state] }
  end,
}

-- What the timer does, asked for by hand.
define {
  name    = "ff_expire_suspension",
  args    = { "execution_id:id" },
  returns = { "expired", "already_satisfied" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return { "already_satisfied", "execution_not_found" } end
    if x.state ~= "suspended" then return { "already_satisfied", "not_suspended" } end
    if not x.suspend_until then return { "already_satisfied", "no_timeout" } end
    if tonumber(x.suspend_until) > p.now then return { "already_satisfied", "not_yet_due" } end
    return { "expired", suspension.expire(p, x) }
  end,
}

due.on("suspension", function(p, id)
  local x = record.load(p, id)
  if not x or x.state ~= "suspended" or not x.suspend_until then return end
  if tonumber(x.suspend_until) > p.now then timers.set(p, "suspension", id, tonumber(x.suspend_until))
  else suspension.expire(p, x) end
end)

-- The signals the last suspension was resumed with, or has counted so far (why is empty then), from a number on.
define {
  name    = "ff_observe_signals",
  args    = { "execution_id:id", "skip:int", "limit:int" },
  returns = { "signals" },
  errors  = { "execution_not_found", "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if a.skip < 0 then return reply.reject("invalid_input", "skip") end
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if not x.suspension then return { "signals", "", "", 0, {}, 0 } end
    local id, why, at, texts, skip = suspension.observed(p, x)
    local rows, bytes, width = {}, 0, suspension.FIELDS_N
    local n = math.floor((#texts - skip) / width)
    for i = a.skip + 1, n do
      if #rows == a.limit or bytes > LIMITS.CLAIM_BYTES then return { "signals", id, why, at, rows, i - 1 } end
      local row = { unpack(texts, skip + (i - 1) * width + 1, skip + i * width) }
      row[8] = tonumber(row[8]) or 0
      bytes = bytes + #row[width]
      rows[#rows + 1] = row
    end
    return { "signals", id, why, at, rows, 0 }
  end,
}

-- Suspended executions of a lane (nil: of all), those that have waited longest first. A page may be short and still have
-- a cursor: one call looks at a bounded number of records.
define {
  name    = "ff_list_suspended",
  args    = { "lane_id:str?", "limit:int", "cursor:str?" },
  returns = { "suspended_page" },
  errors  = { "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local lane_no, score, id = string.match(a.cursor or "", "^(%d+) (%d+) (%S+)$")
    if a.cursor and not lane_no then return reply.reject("invalid_offset", "cursor: pass what the page before answered") end
    local numbers = {}
    if a.lane_id then
      local lane = lanes.named(p, a.lane_id, false)
      if lane then numbers[1] = lane.no end
    else
      numbers = lanes.numbers(p)
    end
    local rows, last = {}, nil
    for l = 1, #numbers do
      if not lane_no or tonumber(numbers[l]) >= tonumber(lane_no) then
        local after = lane_no == numbers[l] and { score = score, id = id } or nil
        local got = walk.page(keys.index(p, numbers[l], "suspended"), after, a.limit - #rows + 1, true)
        for i = 1, #got, 2 do
          if #rows == a.limit then return { "suspended_page", rows, p.now, last } end
          last = numbers[l] .. " " .. got[i + 1] .. " " .. got[i]
          local x = record.load(p, got[i])
          local policy_text, list = unpack(redis.call("HMGET", keys.suspension(p, got[i]), "p", "w"))
          local since, by, code = suspension.about(policy_text)
          local _, n = string.gsub(list or "", "%S+", "")
          if x and x.state == "suspended" then
            rows[#rows + 1] = { p.id_prefix .. x.id, lanes.name(p, x.lane), x.task, x.reason or "", code or "", by or "", tonumber(since or "0"),
              tonumber(x.suspend_until or "0"), record.number(x, "attempt"), n, x.paused and 1 or 0 }
          end
        end
      end
    end
    return { "suspended_page", rows, p.now, "" }
  end,
}
