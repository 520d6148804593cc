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

-- The decoded policy of a JSON text, or nil if it is not an object. A cache, never state.
function policy.decode(json)
  local known = decoded[json]
  if known then return known end
  local ok, value = pcall(cjson.decode, json)
  if not ok or type(value) ~= "table" then return nil end
  for _, name in ipairs({ "retry_policy", "timeout_policy", "routing_requirements" }) do
    if type(value[name]) ~= "table" then value[name] = nil end
  end
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
  local delay = 1000
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
