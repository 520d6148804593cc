-- view.lua -- reads for people and programs: one execution whole, pages of them, their history.
--
-- Records leave the library under their long field names, so the short ones stay in shared/record.lua.

local function flat_record(x)
  local names, flat = {}, {}
  if x.attempt == "-1" then x.attempt = false end
  -- `at` leaves under the name it has in this state.
  if x.at then
    if x.state == "active" then x.lease_expires_at = x.at
    elseif state.is_terminal(x.state) then x.ended_at = x.at
    elseif x.state == "delayed" or x.state == "granted" then x.due = x.at end
    x.at = nil
  end
  for name, value in pairs(x) do if value and name ~= "id" and name ~= "key" and name ~= "more" then names[#names + 1] = name end end -- order-free
  table.sort(names)
  for i = 1, #names do flat[#flat + 1] = names[i]; flat[#flat + 1] = x[names[i]] end
  return flat
end

-- parts: any of "payload", "result", "attempts", joined by commas.
define {
  name    = "ff_read_execution",
  args    = { "execution_id:id", "parts:str" },
  returns = { "execution" },
  errors  = { "execution_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    if not x then
      local tomb = redis.call("HEXISTS", keys.tombs(p, a.execution_id), a.execution_id) == 1
      return reply.reject("execution_not_found", tomb and "purged" or "")
    end
    local texts, detail = {}, x.detail and redis.call("HGETALL", keys.detail(p, x.id)) or {}
    local names, values = {}, {}
    for i = 1, #detail, 2 do
      if string.sub(detail[i], 1, 2) ~= "t:" then
        names[#names + 1] = detail[i]
        values[detail[i]] = detail[i + 1]
      end
    end
    table.sort(names)
    for i = 1, #names do texts[#texts + 1] = names[i]; texts[#texts + 1] = values[names[i]] end
    local want = "," .. a.parts .. ","
    local payload = string.find(want, ",payload,", 1, true) and redis.call("GET", keys.payload(p, x.id)) or ""
    local result = string.find(want, ",result,", 1, true) and record.result(p, x) or ""
    if state.is_queued(x.state) then
      -- It is in line, and its queue or its lane waits for a budget or a quota: no word of the record says so.
      local halt = admission.halting(p, x)
      if halt then x.halt = string.format("%s %s %.0f %s", halt.kind, halt.uuid, halt.over_at, halt.text) end
    end
    x.result_kept, x.result = (x.result or x.result_kept) and "1" or nil, nil
    local attempts = string.find(want, ",attempts,", 1, true) and redis.call("LRANGE", keys.attempts(p, x.id), 0, -1) or {}
    return { "execution", p.id_prefix .. x.id, p.now, lanes.name(p, x.lane), record.worker(x), flat_record(x), record.tags(p, x), texts,
      policy.text(p, x), payload, result, attempts }
  end,
}

-- Outcomes of several executions of a partition at once: state, result (of completed ones), reason, category, encoding.
define {
  name    = "ff_read_outcomes",
  args    = { "items:rows(execution_id:id)" },
  returns = { "outcomes" },
  errors  = {},
  flags   = { "no-writes" },
  run = function(p, a)
    local out, bytes = {}, 0
    for i = 1, #a.items do
      local id = a.items[i].execution_id
      local x = id and record.load_all(p, id)
      if not x then
        out[i] = { id and p.id_prefix .. id or "", "unknown", "", "", "", "", "", 0, 0 }
      elseif bytes > LIMITS.CLAIM_BYTES then
        out[i] = { p.id_prefix .. id, "later", "", "", "", "", "", 0, 0 }
      else
        local result = record.result(p, x) or ""
        bytes = bytes + #result
        local got = state.is_terminal(x.state) and x.state ~= "completed" and x.detail
          and redis.call("HMGET", keys.detail(p, id), x.state == "cancelled" and "cancel_reason" or "reason", "category", "traceback") or {}
        out[i] = { p.id_prefix .. id, x.state, result, x.result_encoding or "", got[1] or "", got[2] or "", got[3] or "",
          x.attempt and tonumber(x.attempt) + 1 or 0, (x.result or x.result_kept) and 1 or 0 }
      end
    end
    return { "outcomes", out }
  end,
}

local WORDS = { "ready", "granted", "delayed", "blocked", "active", "suspended", "completed", "failed", "cancelled", "expired", "skipped" }

-- Where a listing stands: lane number, word or queue, score, id. Opaque to callers.
local function read_cursor(text)
  local lane, word, score, id = string.match(text or "", "^(%d+) (%S+) (%-?%d+) (%S+)$")
  return lane and { lane = lane, word = word, score = score, id = id } or nil
end

local function has_tag(p, x, wanted)
  local tags = record.tags(p, x)
  for i = 1, #tags, 2 do if tags[i] .. "=" .. tags[i + 1] == wanted then return true end end
  return false
end

-- A page of executions by stored state, newest first within a lane and state. `lane_id` nil: every lane.
-- A page may be short or empty and still have a cursor: one call looks at a bounded number of records.
define {
  name    = "ff_list_executions",
  args    = { "lane_id:str?", "states:json", "tag:str?", "namespace:str?", "cursor:str?", "limit:int" },
  returns = { "page" },
  errors  = { "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if type(a.states) ~= "table" then return reply.reject("invalid_input", "states") end
    local cursor = read_cursor(a.cursor)
    if a.cursor and not cursor then return reply.reject("invalid_offset", "cursor") end
    local wanted = {}
    for i = 1, #a.states do wanted[a.states[i]] = true end
    local numbers = {}
    if a.lane_id then
      local lane = lanes.named(p, a.lane_id, false)
      if lane then numbers[1] = lane.no end
    else
      numbers = lanes.numbers(p)
    end
    local out, looked, last = {}, 0, nil
    for l = 1, #numbers do
      if not cursor or tonumber(numbers[l]) >= tonumber(cursor.lane) then
        local sources = {}
        for w = 1, #WORDS do
          if #a.states == 0 or wanted[WORDS[w]] then
            if WORDS[w] == "ready" then
              local ready = queue.sources(p, lanes.of(p, numbers[l]))
              for c = 1, #ready do sources[#sources + 1] = { ready[c][3], ready[c][2] } end
            else
              sources[#sources + 1] = { WORDS[w], WORDS[w] == "active" and keys.leases(p) or keys.index(p, numbers[l], WORDS[w]) }
            end
          end
        end
        -- A place that is gone meanwhile (an order that was left, a capability set) lets the lane begin anew.
        local reached = true
        if cursor and cursor.lane == numbers[l] then
          for s = 1, #sources do if sources[s][1] == cursor.word then reached = false end end
        end
        for s = 1, #sources do
          local here = cursor and cursor.lane == numbers[l] and cursor.word == sources[s][1] and cursor or nil
          reached = reached or here ~= nil
          if reached then
            -- A filter may drop any number of members (what runs is one index for all lanes): look at as many as one
            -- call may, or the rest of this source would be passed over.
            local filtered = a.tag or a.namespace or sources[s][1] == "active"
            local want = filtered and LIMITS.PAGE_MAX_N - looked + 1 or a.limit - #out + 1
            local got = walk.page(sources[s][2], here, want)
            for i = 1, #got, 2 do
              if #out >= a.limit or looked >= LIMITS.PAGE_MAX_N then return { "page", out, last or "" } end
              looked = looked + 1
              last = numbers[l] .. " " .. sources[s][1] .. " " .. got[i + 1] .. " " .. got[i]
              local x = record.load(p, got[i])
              if x and x.lane == numbers[l] and (not a.tag or has_tag(p, x, a.tag)) and (not a.namespace or (x.namespace or "default") == a.namespace) then
                out[#out + 1] = { p.id_prefix .. x.id, lanes.name(p, numbers[l]), x.task, x.state, x.reason or "", x.next or "", x.started_at and 1 or 0,
                  record.number(x, "priority"), record.number(x, "created_at"), state.is_terminal(x.state) and record.number(x, "at") or 0, x.attempt and tonumber(x.attempt) + 1 or 0,
                  x.namespace or "default", record.worker(x) }
              end
            end
          end
        end
      end
    end
    return { "page", out, "" }
  end,
}

-- The lease and state history of one execution, from the feed, oldest first, as far as it is kept. One call looks at
-- HISTORY_N entries, from the one the execution was created in: a page may be short or empty and have a successor.
define {
  name    = "ff_execution_history",
  args    = { "execution_id:id", "after:str?", "limit:int" },
  returns = { "history" },
  errors  = { "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if a.after and not string.find(a.after, "^%d+%-%d+$") then return reply.reject("invalid_input", "after") end
    local from = a.after and "(" .. a.after
    if not from then
      local x = record.load(p, a.execution_id)
      from = x and x.created_at or "-"
    end
    local got = redis.call("XRANGE", keys.events(p), from, "+", "COUNT", LIMITS.HISTORY_N)
    local out, last, more = {}, a.after or "", #got == LIMITS.HISTORY_N
    for i = 1, #got do
      local fields = got[i][2]
      for f = 1, #fields, 2 do
        if fields[f] == "e" and string.sub(fields[f + 1], 1, 36) == a.execution_id then out[#out + 1] = { got[i][1], fields[f + 1] } end
      end
      last = got[i][1]
      if #out >= a.limit then
        more = more or i < #got
        break
      end
    end
    return { "history", out, last, more and 1 or 0 }
  end,
}

-- Executions of this partition whose lease has run out and was not swept yet, or all leases, soonest first. A page may
-- be short or empty and still have a cursor: one call looks at a bounded number of records.
define {
  name    = "ff_list_leases",
  args    = { "lane_id:str?", "expired_only:bool", "limit:int", "cursor:str?" },
  returns = { "leases" },
  errors  = { "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local score, id = string.match(a.cursor or "", "^(%d+) (%S+)$")
    if a.cursor and not score then return reply.reject("invalid_offset", "cursor: pass what the page before answered") end
    local lane = a.lane_id and lanes.named(p, a.lane_id, false)
    local rows, last = {}, nil
    local got = walk.page(keys.leases(p), score and { score = score, id = id }, LIMITS.PAGE_MAX_N, true)
    for i = 1, #got, 2 do
      if a.expired_only and tonumber(got[i + 1]) > p.now then return { "leases", rows, p.now, "" } end
      if #rows == a.limit then return { "leases", rows, p.now, last } end
      last = got[i + 1] .. " " .. got[i]
      local x = record.load(p, got[i])
      if x and x.state == "active" and (not a.lane_id or (lane and x.lane == lane.no)) then
        rows[#rows + 1] = { p.id_prefix .. x.id, lanes.name(p, x.lane), record.worker(x), x.lease_id, record.number(x, "lease_epoch"),
          record.number(x, "attempt"), record.number(x, "at"), x.heard == x.lease_epoch and 1 or 0 }
      end
    end
    return { "leases", rows, p.now, #got == 2 * LIMITS.PAGE_MAX_N and last or "" }
  end,
}

-- The capability sets of lanes in this partition: what workers match their own tokens against.
define {
  name    = "ff_list_capability_sets",
  args    = { "lanes:json" },
  returns = { "capability_sets" },
  errors  = { "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    a.capability_sets = {}
    local refusal = claim.check_queues(a)
    if refusal then return refusal end
    local out, revision = {}, 0
    for i = 1, #a.lanes do
      local lane = lanes.named(p, a.lanes[i], false)
      if lane then
        revision = math.max(revision, lane.revision)
        local flat, digests, tokens = redis.call("HGETALL", keys.caps(p, lane.no)), {}, {}
        for j = 1, #flat, 2 do
          digests[#digests + 1] = flat[j]
          tokens[flat[j]] = flat[j + 1]
        end
        table.sort(digests)
        for j = 1, #digests do out[#out + 1] = { a.lanes[i], digests[j], tokens[digests[j]] } end
      end
    end
    return { "capability_sets", revision, out }
  end,
}

-- The partition's feed after a cursor. A cursor older than what was trimmed is refused, never skipped.
define {
  name    = "ff_read_events",
  args    = { "after:str", "limit:int" },
  returns = { "events" },
  errors  = { "invalid_input", "cursor_expired" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if not string.find(a.after, "^%d+%-%d+$") and a.after ~= "-" then return reply.reject("invalid_input", "after") end
    if a.after ~= "-" and a.after ~= "0-0" then
      local first = redis.call("XRANGE", keys.events(p), "-", "+", "COUNT", 1)
      local length = redis.call("XLEN", keys.events(p))
      -- The feed is only ever cut at its old end, and only when it is full.
      if length >= LIMITS.EVENTS_N and first[1] then
        local fm, fs = string.match(first[1][1], "^(%d+)%-(%d+)$")
        local am, as = string.match(a.after, "^(%d+)%-(%d+)$")
        if tonumber(am) < tonumber(fm) or (am == fm and tonumber(as) + 1 < tonumber(fs)) then return reply.reject("cursor_expired", first[1][1]) end
      end
    end
    local got, out = redis.call("XRANGE", keys.events(p), a.after == "-" and "-" or "(" .. a.after, "+", "COUNT", a.limit), {}
    for i = 1, #got do out[i] = { got[i][1], got[i][2] } end
    return { "events", out, p.now }
  end,
}
