-- shared/policy.lua -- an execution's policy: stored once per partition, decoded once per process.
--
-- Policies are the engine's own JSON (ffcore/policy.py), never user data. A partition interns the first
-- POLICIES_N distinct ones by digest; one beyond that is kept with its execution instead, which costs
-- memory and nothing else.

local policy = {}

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
    max_replay_count = COUNT, dedup_window_ms = SPAN, lease_ms = { LIMITS.LEASE_TTL_MIN_MS, LIMITS.LEASE_TTL_MAX_MS }, max_retries = COUNT },
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

-- The number a policy is stored under; nil when the table is full.
function policy.intern(p, json)
  local key, digest = keys.policies(p), string.sub(redis.sha1hex(json), 1, 20)
  local number = redis.call("HGET", key, digest)
  if number then return number end
  number = tonumber(redis.call("HGET", key, "n") or "0") + 1
  if number > LIMITS.POLICIES_N then return nil end
  redis.call("HSET", key, digest, number, "n", number, "#" .. number, json)
  return tostring(number)
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
