-- shared/policy.lua -- an execution's policy: stored once per partition, decoded once per process.
--
-- Policies are the engine's own JSON (ffcore/policy.py), never user data. A partition interns POLICIES_N distinct ones
-- by digest; one beyond that is kept with its execution instead, which costs memory and nothing else. Numbers are not
-- given again. When the table is half full, a walk over all records finds those in use (who touches a record in the
-- meantime marks its policy too), and the rest is forgotten.

local policy = {}

local SWEPT_N = 250   -- numbers one piece of the sweep looks at

local decoded, decoded_n = {}, 0

-- What a field holds, with JSON null as nil.
function policy.field(value, name)
  local got = value and value[name]
  if got == nil or got == cjson.null then return nil end
  return got
end

-- Bounds of every number that is read later. They are checked where a policy enters: one that is found bad
-- only when a lease expires would stop the tick of its whole partition, again and again.
local COUNT, SPAN = { 0, 4294967295 }, { 0, LIMITS.SPAN_MAX_MS }
local NUMBERS = {
  [""] = { priority = { LIMITS.PRIORITY_MIN, LIMITS.PRIORITY_MAX }, delay_until = { 0, 9007199254740991 }, max_reclaim_count = COUNT,
    max_replay_count = COUNT, max_signals_per_execution = COUNT, dedup_window_ms = SPAN, lease_ms = { LIMITS.LEASE_TTL_MIN_MS, LIMITS.LEASE_TTL_MAX_MS }, max_retries = COUNT },
  timeout_policy = { attempt_timeout_ms = { 1, LIMITS.SPAN_MAX_MS }, execution_deadline_ms = { 1, LIMITS.SPAN_MAX_MS }, max_reclaim_count = COUNT },
  retry_policy = { max_retries = COUNT },
  backoff = { delay_ms = SPAN, initial_delay_ms = SPAN, max_delay_ms = SPAN, multiplier = { 1, 1000, true } },
}

local function sound_part(value, bounds)
  for name, range in pairs(bounds) do -- order-free
    local got = policy.field(value, name)
    if got ~= nil and not (type(got) == "number" and got >= range[1] and got <= range[2] and (range[3] or got % 1 == 0)) then return false end
  end
  return true
end

local function sound_retry(retry)
  local backoff, list = policy.field(retry, "backoff"), policy.field(retry, "retryable_categories")
  if backoff ~= nil and (type(backoff) ~= "table" or not sound_part(backoff, NUMBERS.backoff)) then return false end
  return list == nil or type(list) == "table"
end

-- A whole policy, or a retry policy alone (ff_fail_execution takes both).
local function sound(value)
  if not sound_part(value, NUMBERS[""]) or not sound_retry(value) then return false end
  if value.timeout_policy and not sound_part(value.timeout_policy, NUMBERS.timeout_policy) then return false end
  local retry = value.retry_policy
  return not retry or (sound_part(retry, NUMBERS.retry_policy) and sound_retry(retry))
end

-- The decoded policy of a JSON text, or nil if it is not an object. A cache, never state.
function policy.decode(json)
  local known = decoded[json]
  if known then return known end
  local ok, value = pcall(cjson.decode, json)
  if not ok or type(value) ~= "table" then return nil end
  for _, name in ipairs({ "retry_policy", "timeout_policy", "routing_requirements" }) do
    if policy.field(value, name) == nil then value[name] = nil elseif type(value[name]) ~= "table" then return nil end
  end
  if not sound(value) then return nil end
  -- What every claim asks of a policy, looked up once.
  value.attempt_timeout_ms = policy.field(value.timeout_policy, "attempt_timeout_ms")
  value.lease_ttl_ms = policy.field(value, "lease_ms")
  if decoded_n >= 256 then decoded, decoded_n = {}, 0 end
  decoded[json], decoded_n = value, decoded_n + 1
  return value
end

-- Begin to look for the policies in use, unless that is under way or was done a while ago.
local function find_used(p)
  if p.marking or tonumber(redis.call("HGET", p.key, "marked_at") or "0") > p.now - LIMITS.POLICY_SWEEP_MS then return end
  p.marking = "walk"
  lanes.note(p, "marking", p.marking)
  lanes.note(p, "marked_at", p.now)
  partition.mark_rare(p)
  timers.reap(p, "walk", "policies", p.now)
end

-- The number a policy is stored under; nil when the table is full. Whoever writes a policy's number into a record gets it
-- from here.
function policy.intern(p, json)
  local key, digest = keys.policies(p), string.sub(redis.sha1hex(json), 1, 20)
  local number = redis.call("HGET", key, digest)
  if not number then
    local known = (redis.call("HLEN", key) - 1) / 2
    if known * 2 >= LIMITS.POLICIES_N then find_used(p) end
    if known >= LIMITS.POLICIES_N then return nil end
    number = tostring(redis.call("HINCRBY", key, "n", 1))
    redis.call("HSET", key, digest, number, "#" .. number, json)
  end
  if p.marking then
    p.marks = p.marks or {}
    p.marks[number] = true
  end
  return number
end

-- Marks this call has made.
function policy.flush(p)
  local flat = {}
  for number in pairs(p.marks) do flat[#flat + 1] = number end -- order-free
  table.sort(flat)
  local marks = {}
  for i = 1, #flat do marks[#marks + 1], marks[#marks + 2] = flat[i], "1" end
  p.marks = nil
  redis.call("HSET", keys.marks(p), unpack(marks))
end

-- A piece of the walk is done. After the last one, forget what nobody marked, number by number, some at a time: what a
-- call gives a number meanwhile is marked by it. Whether all is done.
function policy.walked(p, finished)
  if p.marking ~= "sweep" then
    if finished then
      p.marking = "sweep"
      lanes.note(p, "marking", "sweep")
    end
    return false
  end
  local key, from = keys.policies(p), tonumber(lanes.noted(p, "swept")) or 0
  local last = tonumber(redis.call("HGET", key, "n") or "0")
  local upto, rows, numbers, gone = math.min(from + SWEPT_N, last), {}, {}, {}
  for n = from + 1, upto do
    numbers[n - from] = string.format("%.0f", n)
    rows[n - from] = "#" .. numbers[n - from]
  end
  if #rows > 0 then
    local texts, marks = redis.call("HMGET", key, unpack(rows)), redis.call("HMGET", keys.marks(p), unpack(numbers))
    for i = 1, #rows do
      if texts[i] and not marks[i] then
        gone[#gone + 1], gone[#gone + 2] = rows[i], string.sub(redis.sha1hex(texts[i]), 1, 20)
      end
    end
  end
  if #gone > 0 then redis.call("HDEL", key, unpack(gone)) end
  if upto < last then
    lanes.note(p, "swept", upto)
    return false
  end
  redis.call("UNLINK", keys.marks(p))
  redis.call("HDEL", p.key, "marking", "swept")
  p.marking, p.marks = nil, nil
  return true
end

-- The JSON text of a record's policy ("" for none), read once per call and number.
function policy.text(p, x)
  if not x.policy then return "" end
  if x.policy == "d" then return redis.call("HGET", keys.detail(p, x.id), "policy") or "" end
  local seen = p.policies
  if not seen then
    seen = {}
    p.policies = seen
  end
  if not seen[x.policy] then seen[x.policy] = redis.call("HGET", keys.policies(p), "#" .. x.policy) or "" end
  return seen[x.policy]
end

local NONE = {}
function policy.of(p, x)
  if not x.policy then return NONE end
  local text = policy.text(p, x)
  return text ~= "" and policy.decode(text) or NONE
end

-- Crashes allowed before an execution is poisoned: the lower of the two places a policy may say it.
function policy.max_reclaims(pol)
  local a = policy.field(pol, "max_reclaim_count") or 100
  local b = policy.field(policy.field(pol, "timeout_policy"), "max_reclaim_count") or 100
  return math.min(a, b)
end

-- Milliseconds until the next attempt. Jitter is half to whole of the delay, drawn from the id and the
-- retry's number: no random source, and two executions never march in step.
function policy.backoff_ms(retry, retry_n, id)
  local b = policy.field(retry, "backoff")
  local delay
  if b and b.type == "fixed" then
    delay = policy.field(b, "delay_ms") or 1000
  else
    local initial = policy.field(b, "initial_delay_ms") or 1000
    local limit = policy.field(b, "max_delay_ms") or 60000
    delay = math.min(initial * (policy.field(b, "multiplier") or 2) ^ math.min(retry_n, 64), limit)
  end
  delay = math.max(0, math.min(delay, LIMITS.SPAN_MAX_MS))
  if b and policy.field(b, "jitter") then
    local share = tonumber(string.sub(redis.sha1hex(id .. ":" .. retry_n), 1, 8), 16) / 4294967296
    delay = delay * (0.5 + share / 2)
  end
  return math.floor(delay)
end
