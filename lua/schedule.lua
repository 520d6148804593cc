-- schedule.lua -- say what is submitted when, fire what is due, and look at it (shared/schedules.lua).
--
-- The id follows from namespace and name. The instants are computed by the caller, because cron, time zones and their
-- changes of the clock are Python's; the store keeps which one is next, and that each is fired once.

local NO_INSTANT = 9007199254740991

local function bad_instants(due_ms, at_ms)
  if due_ms < 0 or due_ms > NO_INSTANT or at_ms < due_ms then return reply.reject("invalid_input", "due_ms and at_ms: the instant, and when it is acted on") end
end

-- A label is the instant as people read it.
local function bad_label(text) return text == nil or text == "" or #text > 40 or string.find(text, "[^!-~]") ~= nil end

-- What is to be kept of a definition, checked. Answers a refusal, or it.
local function definition(p, a)
  if a.name == "" or #a.name > LIMITS.TAG_VALUE_BYTES or string.find(a.name, "%c") then return reply.reject("invalid_input", "name") end
  if a.spec == "" or #a.spec > LIMITS.SCHEDULE_SPEC_BYTES then return reply.reject("invalid_input", "spec") end
  if submission.bad_digest(a.digest) then return reply.reject("invalid_input", "digest") end
  if #a.payload > LIMITS.PAYLOAD_BYTES then return reply.reject("payload_too_large", #a.payload) end
  if a.deadline_ms and (a.deadline_ms < 1 or a.deadline_ms > LIMITS.SPAN_MAX_MS) then return reply.reject("invalid_input", "deadline_ms") end
  local tags = names.unpack_pairs(a.tags)
  if not tags or #tags > 2 * (LIMITS.TAGS_N - 2) then return reply.reject("invalid_input", "tags") end
  local refusal = names.check_tags(tags)
  if refusal then return refusal end
  local d = { namespace = a.namespace, task = a.execution_kind, lane = a.lane_id, version = string.format("%.0f", a.version),
    priority = string.format("%.0f", a.priority), policy = a.policy, encoding = a.payload_encoding, payload = a.payload, tags = a.tags ~= "" and a.tags or nil,
    fairness = a.fairness_key, admission = a.admission, deadline_ms = a.deadline_ms and string.format("%.0f", a.deadline_ms) }
  local plan
  refusal, plan = submission.plan(p, schedules.create_args(p, d))
  -- A lane that takes nothing now may take something when the time has come.
  if refusal and refusal[2] ~= "lane_closed" then return refusal end
  local _, wrong = submission.admission(plan or {}, a.admission)
  if wrong then return reply.reject("invalid_input", wrong) end
  return nil, d
end

-- Create a schedule, or bring it to another definition. `keep_due`: the instants are the same as before, so the one that is
-- next stays. A paused one stays paused; one that has ended begins anew unless its instants are the same.
define {
  name    = "ff_put_schedule",
  args    = { "schedule_id:id", "name:str", "namespace:str", "spec:str", "digest:str", "lane_id:str", "execution_kind:str", "version:int",
              "priority:int", "policy:str?", "payload:blob", "payload_encoding:str?", "tags:blob", "fairness_key:str?", "admission:str?",
              "deadline_ms:int?", "due_ms:int", "at_ms:int", "keep_due:bool", "paused:bool", "expected_revision:int" },
  returns = { "schedule_put" },   -- created | updated | unchanged, revision, state
  errors  = { "invalid_input", "invalid_tag_key", "invalid_policy_json", "invalid_capabilities", "payload_too_large", "revision_conflict",
              "too_many_names", "store_full" },
  flags   = {},   -- refused over maxmemory: it admits new work
  run = function(p, a)
    local s = schedules.load(p, a.schedule_id)
    if s and s.digest == a.digest then
      fence.replayed(p)
      return { "schedule_put", "unchanged", s.revision, s.state }
    end
    if (s and s.revision or 0) ~= a.expected_revision then return reply.reject("revision_conflict", s and s.revision or 0) end
    local refusal, d = definition(p, a)
    refusal = refusal or bad_instants(a.due_ms, a.at_ms) or partition.full(p)
    if refusal then return refusal end
    if not s and redis.call("ZCARD", keys.schedule_ids(p)) >= LIMITS.SCHEDULES_N then
      return reply.reject("too_many_names", LIMITS.SCHEDULES_N .. " schedules in one partition: remove some")
    end
    local now = string.format("%.0f", p.now)
    local keep = s and a.keep_due
    local state = s and s.state or (a.paused and "paused" or "active")
    if not keep then
      if a.due_ms == 0 then state = "ended" elseif state == "ended" then state = "active" end
    end
    local made = { id = a.schedule_id, state = state, due = keep and s.due or a.due_ms }
    local key, revision = keys.schedule(p, a.schedule_id), (s and s.revision or 0) + 1
    redis.call("HSET", key, "name", a.name, "namespace", a.namespace, "task", a.execution_kind, "lane", a.lane_id, "state", state, "spec", a.spec, "due", string.format("%.0f", made.due), "digest", a.digest, "created", s and s.created or now,
      "changed", now, "revision", revision)
    redis.call("HDEL", key, "failed", "why")
    if state == "ended" and not (s and s.ended_at) then redis.call("HSET", key, "ended_at", now) elseif state ~= "ended" then redis.call("HDEL", key, "ended_at") end
    redis.call("SET", keys.schedule_text(p, a.schedule_id), schedules.pack(d))
    redis.call("ZADD", keys.schedule_ids(p), 0, a.schedule_id)
    if not keep or state ~= "active" then schedules.place(p, made, a.at_ms) end
    return { "schedule_put", s and "updated" or "created", revision, state }
  end,
}

-- Fire what a tick has answered. A row goes from the instant that was due to the next one (0: there is none) and makes a
-- run where it has an execution id; due_ms and next_ms alike: look again at next_at_ms. Rows of one schedule follow each
-- other. What is refused stays due.
define {
  name    = "ff_fire_schedules",
  args    = { "items:rows(schedule_id:id,due_ms:int,next_ms:int,next_at_ms:int,instant_ms:int,label:str,execution_id:id?)" },
  returns = { "fired_many" },   -- per row: fired, duplicate, passed, put_off, moved, gone or error; when the next is due (0: never)
  errors  = {},   -- every refusal is a row's
  flags   = {},   -- refused over maxmemory: it admits new work
  run = function(p, a)
    local loaded, order_of, call, rows = {}, {}, {}, {}
    local places = { at = {}, n = 0 }
    for i = 1, #a.items do
      local row = a.items[i]
      local s = row.schedule_id and loaded[row.schedule_id]
      if s == nil and row.schedule_id then
        s = schedules.load(p, row.schedule_id, "firing") or false
        loaded[row.schedule_id] = s
        if s then order_of[#order_of + 1] = s end
      end
      if row.bad or bad_label(row.label) or bad_instants(row.due_ms, row.due_ms) or row.next_ms ~= 0 and (row.next_ms < row.due_ms or row.next_at_ms < row.next_ms) then
        rows[i] = { "error", "invalid_input" }
      elseif not s then rows[i] = { "gone", "" }
      elseif s.state ~= "active" or s.due ~= row.due_ms then
        fence.replayed(p)
        rows[i] = { "moved", "" }
      elseif row.next_ms == row.due_ms then
        timers.note(places, s.id, row.next_at_ms)
        rows[i] = { "put_off", "" }
      else
        local word, code = "passed", ""
        if row.execution_id then word, code = schedules.run(p, call, s, row.execution_id, row.instant_ms, row.label) end
        s.touched = true
        if word == "error" then
          timers.note(places, s.id, schedules.put_off(p, s, code))
        else
          schedules.move(p, s, row.instant_ms, row.next_ms, row.execution_id)
          timers.note(places, s.id, row.next_ms ~= 0 and row.next_at_ms)
        end
        rows[i] = { word == "created" and "fired" or word, code }
      end
    end
    for i = 1, #order_of do
      local s = order_of[i]
      if s.touched then schedules.write(p, s) end
      if s.ended_at and s.touched then timers.reap(p, "schedule", s.id, p.now + LIMITS.RETENTION_AGE_MS) end
    end
    if places.n > 0 then timers.write(keys.schedules(p), places) end
    local head = redis.call("ZRANGE", keys.schedules(p), 0, 0, "WITHSCORES")
    return { "fired_many", rows, tonumber(head[2] or "0") }
  end,
}

-- Make runs for instants of the caller's choice, whatever state the schedule is in: now, or for what has passed. Its own
-- instants are not touched. An id that exists is answered as a duplicate.
define {
  name    = "ff_run_schedule",
  args    = { "schedule_id:id", "items:rows(execution_id:id,instant_ms:int,label:str)" },
  returns = { "schedule_run" },   -- per row: created, duplicate or error
  errors  = { "schedule_not_found" },
  flags   = {},   -- refused over maxmemory: it admits new work
  run = function(p, a)
    local s = schedules.load(p, a.schedule_id, "firing")
    if not s then return reply.reject("schedule_not_found", p.id_prefix .. a.schedule_id) end
    local rows, call = {}, {}
    for i = 1, #a.items do
      local row = a.items[i]
      if row.bad or bad_label(row.label) then rows[i] = { "error", "invalid_input" }
      else rows[i] = { schedules.run(p, call, s, row.execution_id, row.instant_ms, row.label) } end
    end
    return { "schedule_run", rows }
  end,
}

-- Fire nothing until it is resumed. One that has ended stays ended.
define {
  name    = "ff_pause_schedule",
  args    = { "schedule_id:id" },
  returns = { "schedule_changed" },   -- changed, state, revision
  errors  = { "schedule_not_found" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local s = schedules.load(p, a.schedule_id)
    if not s then return reply.reject("schedule_not_found", p.id_prefix .. a.schedule_id) end
    if s.state ~= "active" then
      fence.replayed(p)
      return { "schedule_changed", 0, s.state, s.revision }
    end
    s.state = "paused"
    redis.call("HSET", keys.schedule(p, s.id), "state", s.state, "revision", s.revision + 1, "changed", string.format("%.0f", p.now))
    schedules.place(p, s, 0)
    return { "schedule_changed", 1, s.state, s.revision + 1 }
  end,
}

-- Go on with the instant the caller has computed; what fell into the pause is passed over.
define {
  name    = "ff_resume_schedule",
  args    = { "schedule_id:id", "due_ms:int", "at_ms:int", "expected_revision:int" },
  returns = { "schedule_changed" },
  errors  = { "invalid_input", "schedule_not_found", "revision_conflict" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local s = schedules.load(p, a.schedule_id)
    if not s then return reply.reject("schedule_not_found", p.id_prefix .. a.schedule_id) end
    if s.state ~= "paused" then
      fence.replayed(p)
      return { "schedule_changed", 0, s.state, s.revision }
    end
    if s.revision ~= a.expected_revision then return reply.reject("revision_conflict", s.revision) end
    local refusal = bad_instants(a.due_ms, a.at_ms)
    if refusal then return refusal end
    s.state = a.due_ms == 0 and "ended" or "active"
    local now = string.format("%.0f", p.now)
    redis.call("HSET", keys.schedule(p, s.id), "state", s.state, "due", string.format("%.0f", a.due_ms), "revision", s.revision + 1, "changed", now)
    if s.state == "ended" then redis.call("HSET", keys.schedule(p, s.id), "ended_at", now) end
    schedules.place(p, s, a.at_ms)
    return { "schedule_changed", 1, s.state, s.revision + 1 }
  end,
}

-- Forget a schedule. Its runs stay what they are.
define {
  name    = "ff_remove_schedule",
  args    = { "schedule_id:id" },
  returns = { "schedule_removed" },   -- was it there
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    if redis.call("EXISTS", keys.schedule(p, a.schedule_id)) == 0 then
      fence.replayed(p)
      return { "schedule_removed", 0 }
    end
    schedules.forget(p, a.schedule_id)
    return { "schedule_removed", 1 }
  end,
}

-- An ended schedule goes a day later; an entry set by a repair puts its places right.
reap.on("schedule", function(p, id)
  if not schedules.mend(p, id) then return 1 end
  local s = schedules.load(p, id)
  if s.state ~= "ended" then return 1 end
  local at = tonumber(s.ended_at or "0") + LIMITS.RETENTION_AGE_MS
  if at <= p.now then schedules.forget(p, id) else timers.reap(p, "schedule", id, at) end
  return 1
end)

-- ---- looking at it -----------------------------------------------------------------------------------

local function row_of(p, s)
  local at = redis.call("ZSCORE", keys.schedules(p), s.id)
  return { p.id_prefix .. s.id, s.name, s.namespace or "", s.state, s.spec, s.task or "", s.lane or "", s.due, tonumber(at or "0"), s.fires,
    tonumber(s.last or "0"), tonumber(s.last_at or "0"), s.last_id and p.id_prefix .. s.last_id or "", tonumber(s.created), tonumber(s.changed), s.revision,
    s.failed, s.why or "" }
end

define {
  name    = "ff_read_schedule",
  args    = { "schedule_id:id" },
  returns = { "schedule" },   -- its row, and what it submits
  errors  = { "schedule_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local s = schedules.load(p, a.schedule_id, "all")
    if not s then return reply.reject("schedule_not_found", p.id_prefix .. a.schedule_id) end
    return { "schedule", row_of(p, s), p.now, s.digest, s.payload or "", s.encoding or "", tonumber(s.version or "1"), tonumber(s.priority or "0"),
      names.unpack_pairs(s.tags or "") or {}, s.policy or "", s.admission or "", tonumber(s.deadline_ms or "0"), s.fairness or "" }
  end,
}

define {
  name    = "ff_list_schedules",
  args    = { "cursor:str?", "limit:int" },
  returns = { "schedules_page" },
  errors  = { "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    local refusal, ids, more = names.page(p, keys.schedule_ids(p), a.cursor, a.limit)
    if refusal then return refusal end
    local rows = {}
    for i = 1, #ids do
      local s = schedules.load(p, ids[i])
      if s then rows[#rows + 1] = row_of(p, s) end
    end
    return { "schedules_page", rows, more }
  end,
}
