-- shared/schedules.lua -- what a schedule is in the store, and how a run of it comes to be.
--
-- One small hash says when: `spec`, a text that only Python reads, and `due`, the instant the next run is for. One text
-- beside it says what is submitted. An active schedule stands in the set of schedules by when that instant is acted on:
-- then, or later by its jitter or after a refusal. Whoever ticks computes the instant after it and fires; a run is made
-- only while `due` is still the one that was answered, so each instant has one run, whoever ticks and however often.

local schedules = {}
do -- helpers of this file; a chunk holds 200 locals

schedules.STATES = { active = true, paused = true, ended = true }
local SHORT = { "name", "state", "due", "fires", "digest", "failed", "why", "task", "lane", "namespace", "revision", "spec", "last", "last_at", "last_id",
  "created", "changed", "ended_at" }
local FIRING_N = 10   -- of these, what firing reads
local LONG = { "version", "priority", "policy", "encoding", "payload", "tags", "fairness", "admission", "deadline_ms" }
local LENGTHS = "^(%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+)\n"

local function whole(n) return string.format("%.0f", n) end

-- What it submits, as one text: a line of lengths (-1: it has none), then the values.
function schedules.pack(d)
  local lengths, values = {}, {}
  for i = 1, #LONG do
    local value = d[LONG[i]]
    lengths[i] = value and #value or -1
    values[#values + 1] = value
  end
  return table.concat(lengths, " ") .. "\n" .. table.concat(values)
end

local function unpack_text(s, text)
  local lengths = { string.find(text, LENGTHS) }
  local at = lengths[2]
  if not at then return end
  for i = 1, #LONG do
    local n = tonumber(lengths[i + 2])
    if n >= 0 then
      s[LONG[i]] = string.sub(text, at + 1, at + n)
      at = at + n
    end
  end
end

-- A schedule, or nil. `how`: "firing": what that needs; "all": everything; nil: without what it submits.
function schedules.load(p, id, how)
  local n = how == "firing" and FIRING_N or #SHORT
  local got = redis.call("HMGET", keys.schedule(p, id), unpack(SHORT, 1, n))
  if not got[1] then return nil end
  local s = { id = id }
  for i = 1, n do s[SHORT[i]] = got[i] or nil end
  s.due, s.fires, s.failed = tonumber(s.due), tonumber(s.fires or "0"), tonumber(s.failed or "0")
  s.revision, s.why_was = tonumber(s.revision or nil), s.why
  if how then unpack_text(s, redis.call("GET", keys.schedule_text(p, id)) or "") end
  return s
end

-- The arguments of a create, as shared/submission.lua takes them.
function schedules.create_args(p, d)
  local deadline_ms = tonumber(d.deadline_ms or nil)
  return { lane_id = d.lane, execution_kind = d.task, namespace = d.namespace, priority = tonumber(d.priority), creator_identity = "",
    version = tonumber(d.version), payload_encoding = d.encoding, policy = d.policy, execution_deadline_at = deadline_ms and p.now + deadline_ms }
end

-- Its place in the set of schedules, and what looks after it: as its state says.
function schedules.place(p, s, at)
  if s.state == "active" then
    redis.call("ZADD", keys.schedules(p), at, s.id)
    if at < p.ticker_until and (not p.soonest or at < p.soonest) then p.soonest = at end
  else
    redis.call("ZREM", keys.schedules(p), s.id)
  end
  if s.state == "ended" then timers.reap(p, "schedule", s.id, p.now + LIMITS.RETENTION_AGE_MS) end
end

function schedules.forget(p, id)
  redis.call("UNLINK", keys.schedule(p, id), keys.schedule_text(p, id))
  redis.call("ZREM", keys.schedules(p), id)
  redis.call("ZREM", keys.schedule_ids(p), id)
  timers.unreap(p, "schedule", id)
end

-- Those that are due, for whoever ticks, and when the next one is that is not (nil: none). Nothing is due while the store
-- takes no new work.
function schedules.due(p)
  local key = keys.schedules(p)
  local head = redis.call("ZRANGE", key, 0, 0, "WITHSCORES")
  local at = tonumber(head[2])
  if not at or at > p.now then return {}, at end
  if p.gate_until > p.now then return {}, p.gate_until end
  local ids, rows = redis.call("ZRANGE", key, "-inf", whole(p.now), "BYSCORE", "LIMIT", 0, LIMITS.FIRES_N), {}
  for i = 1, #ids do
    local got = redis.call("HMGET", keys.schedule(p, ids[i]), "due", "spec")
    if got[1] then rows[#rows + 1] = { p.id_prefix .. ids[i], tonumber(got[1]), got[2] or "" }
    else redis.call("ZREM", key, ids[i]) end
  end
  local after = redis.call("ZRANGE", key, "(" .. whole(p.now), "+inf", "BYSCORE", "LIMIT", 0, 1, "WITHSCORES")
  return rows, tonumber(after[2])
end

-- Make one run. `call`: what the runs of one call share. Answers a word: created; duplicate (the run of this instant is
-- there already); or error and the code.
function schedules.run(p, call, s, id, instant_ms, label)
  local refusal = partition.full(p)
  if refusal then return "error", refusal[2] end
  local kind = table.concat({ s.lane, s.task, s.version, s.priority, s.namespace, s.encoding or "", s.deadline_ms or "", s.policy or "" }, "\n")
  local made = call[kind]
  if not made then
    local a = schedules.create_args(p, s)
    local plan
    refusal, plan = submission.plan(p, a)
    if not refusal then refusal = submission.open(p, a, plan) end
    made = { a = a, plan = plan, refused = refusal and refusal[2] }
    call[kind] = made
  end
  if made.refused then return "error", made.refused end
  local admits, wrong = submission.admission(made.plan, s.admission)
  if wrong then return "error", "invalid_input" end
  -- A payload is there as long as its record: it says whether the id is free.
  local key, payload = keys.payload(p, id), s.payload or ""
  if made.plan.lane.most and redis.call("EXISTS", key) == 0 then
    refusal = lanes.full(p, made.plan.lane, 1, #payload)
    if refusal then return "error", refusal[2] end
  end
  if not redis.call("SET", key, payload, "NX") then
    fence.replayed(p)
    return "duplicate", ""
  end
  local tags = s.tags and names.unpack_pairs(s.tags) or {}
  tags[#tags + 1], tags[#tags + 2] = "schedule.name", s.name
  tags[#tags + 1], tags[#tags + 2] = "schedule.due", label
  submission.write(p, made.a, made.plan, id, s.payload, true, s.digest, s.fairness, tags, nil, admits)
  return "created", ""
end

-- On to the instant after. next_ms 0: there is none.
function schedules.move(p, s, instant_ms, next_ms, id)
  s.due, s.failed, s.why = next_ms, 0, nil
  if id then s.fires, s.last, s.last_at, s.last_id = s.fires + 1, whole(instant_ms), whole(p.now), id end
  if next_ms == 0 then s.state, s.ended_at = "ended", whole(p.now) end
end

-- Refused: the instant stays due, and is tried again a while later, longer each time.
function schedules.put_off(p, s, code)
  s.failed, s.why = s.failed + 1, code
  return p.now + math.min(60000, LIMITS.FULL_RETRY_MS * 2 ^ math.min(s.failed - 1, 10))
end

-- Write what firing has changed.
function schedules.write(p, s)
  local set = { "due", whole(s.due) }
  local function also(name, value) if value then set[#set + 1], set[#set + 2] = name, value end end
  if s.last then set = { "due", whole(s.due), "fires", whole(s.fires), "last", s.last, "last_at", s.last_at, "last_id", s.last_id } end
  if s.why or s.why_was then also("failed", whole(s.failed)); also("why", s.why) end
  if s.ended_at then also("state", s.state); also("ended_at", s.ended_at) end
  redis.call("HSET", keys.schedule(p, s.id), unpack(set))
  if s.why_was and not s.why then redis.call("HDEL", keys.schedule(p, s.id), "why") end
end

-- Put right what points at a schedule; for the checker's repairs. Answers whether there is one.
function schedules.mend(p, id)
  local s = schedules.load(p, id)
  if not s or redis.call("EXISTS", keys.schedule_text(p, id)) == 0 then
    schedules.forget(p, id)
    return false
  end
  redis.call("ZADD", keys.schedule_ids(p), 0, id)
  local at = tonumber(redis.call("ZSCORE", keys.schedules(p), id) or nil)
  if s.state ~= "active" then redis.call("ZREM", keys.schedules(p), id)
  elseif not at then schedules.place(p, s, math.max(s.due, p.now)) end
  return true
end

end
