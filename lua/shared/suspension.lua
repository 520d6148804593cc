-- shared/suspension.lua -- an execution waits without a lease, and goes on: by signals, an operator, or time.
--
-- The hash of a suspension says what it waits for, and keeps what has arrived until the execution goes on; after that it
-- still says what it was, for whoever asks or sends the same call again, until the next one takes its place:
--   i id · c condition · w waitpoints, in order · p its policy, when, by whom, why · l pointer · s step and its name
--   m "<count> <bytes>" of the signals that count, m1 m2 ... each as text, q1 q2 ... their numbers · n... t... state of the condition's nodes
--   o "<suspended|already_satisfied> <fence>", what the call was answered (not of a step: that is asked for by its key)
--   y "<why> <at>", once it is over, and z with what (not of a step: then the journal has both)
--   K k<digest>, what idempotency keys of suspensions were answered
-- The record says `suspension` from the first one on, and `suspend_until` while time will end it.

local suspension = {}

suspension.BEHAVIORS = { fail = true, cancel = true, expire = true, auto_resume_with_timeout_signal = true, escalate = true }
suspension.REQUESTERS = { worker = true, operator = true, policy = true, system_timeout_policy = true }

-- Why an execution suspends, and the reason it then shows.
suspension.REASONS = { waiting_for_signal = "waiting_for_signal", waiting_for_approval = "waiting_for_approval",
  waiting_for_callback = "waiting_for_callback", waiting_for_tool_result = "waiting_for_tool_result",
  waiting_for_operator_review = "paused_by_operator", manual_pause = "paused_by_operator", paused_by_policy = "paused_by_policy",
  paused_by_budget = "waiting_for_budget", step_boundary = "waiting_for_signal" }

-- ---- what resumed it, as text ------------------------------------------------------------------------------
-- Texts of "<bytes>:<text>": why, when, then eleven for each signal, in order of arrival.

suspension.FIELDS_N = 11

local text = waitpoints.text

-- The texts of a value.
function suspension.unpack(value)
  local out, at = {}, 1
  while at <= #value do
    local n, from = string.match(value, "^(%d+):()", at)
    if not n or from + tonumber(n) - 1 > #value then return out end
    out[#out + 1] = string.sub(value, from, from + tonumber(n) - 1)
    at = from + tonumber(n)
  end
  return out
end

-- ---- the hash ----------------------------------------------------------------------------------------------

local POLICY = "^(%d) (%d) (%d) (%d+) (%S+) (%d+) (%d+) "
local function policy_text(p, spec, span)
  return (spec.consume and "1 " or "0 ") .. (spec.close and "1 " or "0 ") .. (spec.retain and "1 " or "0 ")
    .. (spec.resume_delay_ms and record.text(p, spec.resume_delay_ms) or "0") .. " " .. spec.behavior .. " "
    .. (span > 0 and record.text(p, span) or "0") .. " " .. (spec.version and record.text(p, spec.version) or "1") .. " "
    .. record.text(p, p.now) .. " " .. spec.requested_by .. " " .. spec.reason_code
end

-- When a suspension began, on whose behalf, and why: of its field p.
function suspension.about(policy) return string.match(policy or "", "(%d+) (%S+) (%S+)$") end

-- The suspension an execution waits in. One read.
local function open_one(p, x)
  local r = redis.call("HMGET", keys.suspension(p, x.id), "c", "w", "p", "m", "s")
  local consume, close, retain, delay, behavior, span, version = string.match(r[3] or "", POLICY)
  local w = { condition = r[1] or condition.OPERATOR, waitpoints = r[2] or "", consume = consume ~= "0", close = close ~= "0", retain = retain == "1",
    delay_ms = tonumber(delay or "0"), behavior = behavior or "fail", span = span or "0", n = 0, bytes = 0 }
  if r[4] then
    local n, bytes = string.match(r[4], "^(%d+) (%d+)$")
    w.n, w.bytes = tonumber(n), tonumber(bytes)
  end
  if r[5] then
    w.step, w.name = string.match(r[5], "^(%S+) (.*)$")
    w.version = tonumber(version)
  end
  return w
end

local function signals_text(p, x, n)
  if n == 0 then return "" end
  local key, parts = keys.suspension(p, x.id), {}
  for from = 1, n, 1000 do
    local fields = {}
    for k = from, math.min(n, from + 999) do fields[#fields + 1] = "m" .. k end
    local got = redis.call("HMGET", key, unpack(fields))
    for k = 1, #got do parts[#parts + 1] = got[k] or "" end
  end
  return table.concat(parts)
end

-- Waitpoints of a suspension that is over: closed, or open again for what comes later.
local function let_go(p, x, list, close, retain, reason)
  local ids = {}
  for id in string.gmatch(list, "%S+") do ids[#ids + 1] = id end
  -- What they keep is dropped with them.
  if reason ~= "ended" and (close or not retain) then waitpoints.gather(p, x, ids, true) end
  for i = 1, #ids do
    if close then waitpoints.close(p, x, ids[i], reason) else waitpoints.release(p, x, ids[i], retain) end
  end
end

-- What it was resumed with goes into the journal if it was a step, else it stays here. The journal takes it though it
-- be full: it has happened.
local function keep(p, x, key, step, name, version, why, value)
  if step then journal.put(p, x, step, "wait", "ok", name, value, version)
  else redis.call("HSET", key, "y", why .. " " .. record.text(p, p.now), "z", value) end
end

local function value_of(p, why, signals) return text(why) .. text(record.text(p, p.now)) .. signals end

-- The wait is over: back to the queue at the old turn, or delayed first.
local function resume(p, x, w, why, signals, delay_ms, told)
  keep(p, x, keys.suspension(p, x.id), w.step, w.name, w.version, why, value_of(p, why, signals))
  if w.n > 0 then
    -- What had been counted is in what was just kept.
    local gone = {}
    for k = 1, math.min(w.n, 1000) do gone[2 * k - 1], gone[2 * k] = "m" .. k, "q" .. k end
    redis.call("HDEL", keys.suspension(p, x.id), "m", unpack(gone))
  end
  -- A handler that asked to be told of the time may wait there again: its gates stay open.
  let_go(p, x, w.waitpoints, w.close and not (w.step and why == "timeout"), w.retain, "resumed")
  if x.suspend_until then timers.clear(p, "suspension", x.id) end
  if delay_ms > 0 then
    state.move(p, x, "delayed", told, "reason", "waiting_for_resume_delay", "at", p.now + delay_ms, "suspend_until", false, "moved_at", p.now)
  else
    -- It has its turn still.
    state.move(p, x, "ready", told, "reason", false, "suspend_until", false, "moved_at", p.now)
  end
end

-- ---- begin -------------------------------------------------------------------------------------------------

-- Signals that waitpoints have kept, in order of arrival over all of them: { waitpoint's number, signal }.
local function early(p, x, spec)
  local all = {}
  waitpoints.gather(p, x, spec.waitpoints)
  for i = 1, #spec.waitpoints do
    if not (spec.fresh and spec.fresh[i]) then
      local kept = waitpoints.buffered(p, x, spec.waitpoints[i])
      for k = 1, #kept do all[#all + 1] = { i, kept[k] } end
    end
  end
  if #spec.waitpoints > 1 then table.sort(all, function(l, r) return l[2].seq < r[2].seq end) end
  return all
end

-- What the signals kept so far make of a condition. Reads only; the answer goes to suspension.begin. A refusal comes
-- second. spec: id, condition (text), waitpoints (ids in order), fresh (which of them were just made), reason_code,
-- requested_by, behavior, timeout_at (nil: none), consume, close, retain (policy), resume_delay_ms, pointer, key,
-- step, name, version, ring (see suspension.answered; nil: not read yet).
local NOTHING = { signals = {}, packed = {}, met = false }
function suspension.weigh(p, x, spec)
  local all = early(p, x, spec)
  if #all == 0 then return NOTHING end
  local tree, st = condition.read(spec.condition), condition.state(nil)
  local got = { state = st, signals = {}, packed = {}, bytes = 0, met = false }
  for i = 1, #all do
    local effect, met = condition.offer(tree, st, all[i][1], all[i][2])
    if effect == "counted" then
      got.signals[#got.signals + 1] = all[i][2]
      got.packed[#got.packed + 1] = all[i][2].packed
      got.bytes = got.bytes + #got.packed[#got.packed]
      if got.bytes > LIMITS.MATCHED_BYTES then return nil, reply.reject("signal_limit_exceeded", "the signals kept are over " .. LIMITS.MATCHED_BYTES .. " bytes") end
    end
    if met then
      got.met = true
      break
    end
  end
  return got
end

-- What idempotency keys were answered survives the suspensions they were of: their fields, with the new one, go to `flat`.
local function remember(p, x, key, spec, outcome, flat)
  local ring = spec.ring
  if ring == nil then ring = x.suspension and redis.call("HGET", key, "K") end
  if not ring and not spec.key then return end
  local names = {}
  for name in string.gmatch(ring or "", "%S+") do names[#names + 1] = name end
  local kept = #names > 0 and redis.call("HMGET", key, unpack(names)) or {}
  local mine = spec.key and "k" .. string.sub(redis.sha1hex(spec.key), 1, 20)
  local order = {}
  for i = math.max(1, #names - LIMITS.SUSPEND_KEYS_N + 2), #names do
    if names[i] ~= mine and kept[i] then
      order[#order + 1] = names[i]
      flat[#flat + 1], flat[#flat + 2] = names[i], kept[i]
    end
  end
  if mine then
    order[#order + 1] = mine
    flat[#flat + 1], flat[#flat + 2] = mine, outcome .. " " .. spec.id .. " " .. record.fence(x) .. " " .. #spec.waitpoints .. " " .. table.concat(spec.waitpoints, " ")
  end
  flat[#flat + 1], flat[#flat + 2] = "K", table.concat(order, " ")
end

-- The first answer of a suspend call that is sent again, by its key or its id: outcome, suspension id, waitpoint ids,
-- and the fence it was made under. Last, also for a new call, which keys were answered (spec.ring of suspension.begin).
function suspension.answered(p, x, id, key)
  if not x.suspension then return nil, nil, nil, nil, false end
  local r = redis.call("HMGET", keys.suspension(p, x.id), "i", "o", "w", key and "k" .. string.sub(redis.sha1hex(key), 1, 20) or "-", "K")
  local list, was = r[3], id
  local outcome, held
  if r[4] then
    outcome, was, held, list = string.match(r[4], "^(%S+) (%S+) (%S* %S+ %S+) %d+ ?(.*)$")
  elseif r[1] == id and r[2] then
    outcome, held = string.match(r[2], "^(%S+) (.*)$")
  else
    return nil, nil, nil, nil, r[5]
  end
  local out = {}
  for one in string.gmatch(list or "", "%S+") do out[#out + 1] = one end
  return outcome, was, out, held
end

-- Begin to wait. The caller holds the lease or acts for an operator, has checked everything, and passes what weigh
-- answered. Answers "suspended", or "already_satisfied" and what with: then the lease is kept.
function suspension.begin(p, x, spec, got)
  local key, why = keys.suspension(p, x.id), "signal"
  local outcome = got.met and "already_satisfied" or "suspended"
  local list = table.concat(spec.waitpoints, " ")
  local set = { "i", spec.id, "w", list, "p", policy_text(p, spec, spec.timeout_at and math.max(1, spec.timeout_at - p.now) or 0),
    spec.step and "s" or "o", spec.step and spec.step .. " " .. spec.name or outcome .. " " .. record.fence(x) }
  remember(p, x, key, spec, outcome, set)
  if x.suspension then redis.call("UNLINK", key) end
  local n = #set
  if spec.pointer and spec.pointer ~= "" then set[n + 1], set[n + 2], n = "l", spec.pointer, n + 2 end
  if got.met then
    redis.call("HSET", key, unpack(set))
    local value = value_of(p, why, table.concat(got.packed))
    keep(p, x, key, spec.step, spec.name, spec.version, why, value)
    if spec.consume then waitpoints.consume(p, x, got.signals) end
    let_go(p, x, list, spec.close, spec.retain, "resumed")
    if not x.suspension then record.write(p, x, "suspension", "1") end
    return outcome, value
  end
  set[n + 1], set[n + 2], n = "c", spec.condition, n + 2
  if #got.packed > 0 then
    set[n + 1], set[n + 2], n = "m", #got.packed .. " " .. got.bytes, n + 2
    for k = 1, #got.packed do
      set[n + 1], set[n + 2], set[n + 3], set[n + 4], n = "m" .. k, got.packed[k], "q" .. k, got.signals[k].seq .. "", n + 4
    end
    for k = 1, #got.state.set do set[n + k] = got.state.set[k] end
  end
  -- Far below what one call may carry, unless early signals were thousands.
  for from = 1, #set, 2000 do redis.call("HSET", key, unpack(set, from, math.min(#set, from + 1999))) end
  if spec.consume and #got.signals > 0 then waitpoints.consume(p, x, got.signals) end
  for i = 1, #spec.waitpoints do waitpoints.activate(p, x, spec.waitpoints[i], i) end
  if spec.timeout_at then timers.set(p, "suspension", x.id, spec.timeout_at) end
  state.move(p, x, "suspended", spec.reason_code, "reason", suspension.REASONS[spec.reason_code], "next", "resumed",
    "suspension", "1", "suspend_until", spec.timeout_at or false,
    "attempt_left_ms", attempt.left_ms(p, x), "attempt_deadline_at", false, "ended_by", "suspend", "unseen", false, "moved_at", p.now)
  return outcome
end

-- What the last suspension was resumed with: its id, why ("" while it lasts), when, the texts, and how many of them come
-- before those of the signals.
function suspension.observed(p, x)
  local r = redis.call("HMGET", keys.suspension(p, x.id), "i", "y", "z", "s", "m")
  local why, at = string.match(r[2] or "", "^(%S+) (%d+)$")
  if not why and r[4] and x.state ~= "suspended" then
    local entry = journal.find(p, x, string.match(r[4], "^%S+"))
    local texts = suspension.unpack(entry and select(7, journal.unpack(entry)) or "")
    return r[1] or "", texts[1] or "", tonumber(texts[2] or "0"), texts, 2
  end
  if why then return r[1] or "", why, tonumber(at), suspension.unpack(r[3] or ""), 2 end
  return r[1] or "", "", 0, suspension.unpack(signals_text(p, x, tonumber(string.match(r[5] or "", "^%d+") or "0"))), 0
end

-- ---- what ends it ------------------------------------------------------------------------------------------

local EFFECT = { duplicate = "appended_to_waitpoint_duplicate", unmatched = "signal_ignored_matcher_failed",
  elsewhere = "signal_ignored_not_in_condition" }

-- A signal has come to the waitpoint of this number. Answers its effect, and whether the suspension has taken it: if
-- not, its waitpoint keeps it as long as it is open. Or nil and a refusal: nothing was written then.
function suspension.signal(p, x, waitpoint, signal)
  if x.state ~= "suspended" then return EFFECT.elsewhere, false end
  local w = open_one(p, x)
  local key = keys.suspension(p, x.id)
  local tree, st = condition.read(w.condition), condition.state(key)
  local effect, met = condition.offer(tree, st, waitpoint, signal)
  if effect ~= "counted" then return EFFECT[effect], false end
  local packed = signal.packed
  if met then
    local before = signals_text(p, x, w.n)
    resume(p, x, w, "signal", before .. packed, w.delay_ms, "signal")
    return "resume_condition_satisfied", w.consume
  end
  if w.bytes + #packed > LIMITS.MATCHED_BYTES then
    return nil, reply.reject("signal_limit_exceeded", "what it waits for is over " .. LIMITS.MATCHED_BYTES .. " bytes")
  end
  local set = st.set
  set[#set + 1], set[#set + 2] = "m", (w.n + 1) .. " " .. (w.bytes + #packed)
  set[#set + 1], set[#set + 2] = "m" .. (w.n + 1), packed
  set[#set + 1], set[#set + 2] = "q" .. (w.n + 1), signal.seq .. ""
  redis.call("HSET", key, unpack(set))
  return "appended_to_waitpoint", w.consume
end

-- An operator lets it go on: that meets what waits for an operator, and no more: a second word takes nobody else's part.
-- A condition in which nothing does ends as it stands; so does any when it is forced. Whether it goes on.
function suspension.approve(p, x, delay_ms, forced)
  local w = open_one(p, x)
  local key, tree = keys.suspension(p, x.id), condition.read(w.condition)
  local st = condition.state(key)
  local any, met = condition.approve(tree, st)
  if #tree.operators > 0 and not met and not forced then
    if any then
      redis.call("HSET", key, unpack(st.set))
      events.add(p, x, x.state, x.state, "approved")
    else
      fence.replayed(p)
    end
    return false
  end
  resume(p, x, w, "operator", signals_text(p, x, w.n), delay_ms, "operator")
  return true
end

-- Its time is over: do what it said. Answers the word for what was done.
function suspension.expire(p, x)
  local w = open_one(p, x)
  if w.behavior == "auto_resume_with_timeout_signal" then
    resume(p, x, w, "timeout", signals_text(p, x, w.n), 0, "timeout")
    return w.behavior
  end
  local category = "suspension_timeout"
  if w.behavior == "escalate" then
    -- An operator has as long again; then it fails.
    local at, key = p.now + math.max(1000, tonumber(w.span)), keys.suspension(p, x.id)
    local was = redis.call("HGET", key, "p")
    redis.call("HSET", key, "c", condition.OPERATOR, "p", (string.gsub(was, " escalate ", " fail ", 1)))
    record.write(p, x, "reason", "paused_by_operator", "suspend_until", at)
    timers.set(p, "suspension", x.id, at)
    events.add(p, x, x.state, x.state, "escalated")
    return w.behavior
  end
  if w.behavior == "cancel" then
    record.describe(p, x, "cancel_reason", "what it waited for did not come in time", "cancelled_by", "system_timeout")
    state.finish(p, x, "cancelled", category)
  elseif w.behavior == "expire" then
    record.describe(p, x, "reason", "what it waited for did not come in time", "category", category, "traceback", "")
    state.finish(p, x, "expired", category)
  else
    record.describe(p, x, "reason", "what it waited for did not come in time", "category", category, "traceback", "")
    state.finish(p, x, "failed", category)
  end
  return w.behavior
end

-- What it has counted goes back to the waitpoints that are open: a replay waits there again, and whoever has sent it
-- will not send it twice.
local function give_back(p, x, w)
  local key = keys.suspension(p, x.id)
  for from = 1, w.n, 500 do
    local fields, half = {}, math.min(w.n, from + 499) - from + 1
    for k = 1, half do fields[k], fields[half + k] = "m" .. from + k - 1, "q" .. from + k - 1 end
    local got = redis.call("HMGET", key, unpack(fields))
    for k = 1, half do if got[k] then waitpoints.restore(p, x, got[k], got[half + k]) end end
    redis.call("HDEL", key, "m", unpack(fields))
  end
end

-- An execution ends while it waits.
state.on_abandon(function(p, x)
  local w = open_one(p, x)
  if w.consume and w.n > 0 then give_back(p, x, w) end
  redis.call("HSET", keys.suspension(p, x.id), "y", "ended " .. record.text(p, p.now))
  let_go(p, x, w.waitpoints, true, false, "ended")
  timers.clear(p, "suspension", x.id)
  if x.suspend_until then record.write(p, x, "suspend_until", false) end
end)

-- A replay waits anew where its execution ended while it waited: what that call was answered is no answer any more.
function suspension.reopen(p, x)
  local key = keys.suspension(p, x.id)
  local r = redis.call("HMGET", key, "i", "y", "K")
  if not string.find(r[2] or "", "^ended ") then return end
  redis.call("HDEL", key, "o")
  local names, left = {}, {}
  for name in string.gmatch(r[3] or "", "%S+") do names[#names + 1] = name end
  local kept = #names > 0 and redis.call("HMGET", key, unpack(names)) or names
  for i = 1, #names do
    if kept[i] and string.match(kept[i], "^%S+ (%S+) ") == r[1] then redis.call("HDEL", key, names[i])
    else left[#left + 1] = names[i] end
  end
  if #left < #names then redis.call("HSET", key, "K", table.concat(left, " ")) end
end

-- Nothing of earlier suspensions is remembered.
function suspension.clear(p, x)
  if not x.suspension then return end
  redis.call("UNLINK", keys.suspension(p, x.id))
  record.write(p, x, "suspension", false)
end

journal.on_restart(suspension.clear)
