-- shared/waitpoints.lua -- where signals arrive: opened, addressed with a token, closed; and the signals they keep.
--
-- Two hashes per execution, and one of the partition:
--   waitpoints  <waitpoint uuid> -> state created activated expires kid digest index reason key   ("." for what is absent)
--               m -> how many are open, and when the next pending one expires (0: none does)
--   signals     s<number> -> a kept signal, packed; k<digest of waitpoint and key> -> until, signal id, effect, number
--               c<waitpoint uuid> -> the first number it kept, and how many it keeps
--               n -> how many signals were ever taken, how many are kept, their bytes
--   kids        current -> the kid that signs; k<kid> -> fingerprint of its secret, until when it verifies (0: it signs)
--               n<kid> -> open waitpoints whose tokens it signed; opened -> how many there ever were
-- The store has the token's digest and its kid, never a token or a secret. A waitpoint is pending until an execution
-- suspends on it, active while it waits there, closed for good. Checks come first (refuse_*), then writes.

local waitpoints = {}

do   -- helpers of this file; a chunk holds 200 locals

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"
local TEXTS_N = 11   -- of a packed signal

-- ---- texts ---------------------------------------------------------------------------------------------

-- Any texts as one: each behind its length in bytes and a colon.
function waitpoints.pack(...)
  local given, out = { ... }, {}
  for i = 1, select("#", ...) do
    local text = given[i] or ""
    out[i] = #text .. ":" .. text
  end
  return table.concat(out)
end

-- The first n texts of a packed one, and where the next begins; nil when it cannot be read.
function waitpoints.unpack(packed, n, at)
  local out = {}
  at = at or 1
  for i = 1, n do
    local digits = string.match(packed, "^(%d+):", at)
    if not digits then return nil end
    local from = at + #digits + 1
    at = from + tonumber(digits)
    if at > #packed + 1 then return nil end
    out[i] = string.sub(packed, from, at - 1)
  end
  return out, at
end

function waitpoints.is_id(text) return string.find(text, UUID) ~= nil end

-- "." stands for what is absent: no kid, digest or number looks like it.
local function dot(value) return (value == nil or value == "") and "." or value end
local function plain(text) return text ~= "." and text or nil end

-- ---- rows ----------------------------------------------------------------------------------------------

function waitpoints.read(text)
  local word, created, activated, expires, kid, digest, index, reason, key =
    string.match(text, "^(%l+) (%d+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (.*)$")
  if not word then return nil end
  return { state = word, created = tonumber(created), activated = tonumber(activated), expires = tonumber(expires), kid = plain(kid),
    digest = plain(digest), index = tonumber(index), reason = plain(reason), key = key }
end

local function text_of(p, row)
  return row.state .. " " .. record.text(p, row.created) .. " " .. (row.activated and record.text(p, row.activated) or ".") .. " "
    .. (row.expires and record.text(p, row.expires) or ".") .. " " .. dot(row.kid) .. " " .. dot(row.digest) .. " "
    .. (row.index or ".") .. " " .. dot(row.reason) .. " " .. row.key
end

-- What this call has read of an execution's waitpoints: rows by id, how many are open, the next expiry.
local function known(p, x)
  p.waitpoints = p.waitpoints or {}
  local seen = p.waitpoints[x.id]
  if not seen then
    seen = { rows = {} }
    p.waitpoints[x.id] = seen
  end
  return seen
end

local function read_meta(seen, text)
  local open, next_at = string.match(text or "0 0", "^(%d+) (%d+)$")
  seen.open, seen.next_at = tonumber(open), tonumber(next_at)
end

local function fetch(p, x, id)
  local seen = known(p, x)
  if seen.rows[id] == nil or not seen.open then
    if not x.waitpoints then
      seen.rows[id] = false
      seen.open, seen.next_at = seen.open or 0, seen.next_at or 0
    else
      local got = redis.call("HMGET", keys.waitpoints(p, x.id), id, "m")
      seen.rows[id] = seen.rows[id] or (got[1] and waitpoints.read(got[1])) or false
      if not seen.open then read_meta(seen, got[2]) end
    end
  end
  return seen
end

-- A waitpoint of this execution, or nil: { state, created, activated, expires, kid, digest, index, reason, key }.
function waitpoints.load(p, x, id)
  if not string.find(id, UUID) then return nil end
  return fetch(p, x, id).rows[id] or nil
end

-- Every waitpoint of an execution, in the order of their ids: { { id, row }, ... }; how many are open by their count, and
-- when the next one expires (0: none).
function waitpoints.all(p, x)
  local seen, out = known(p, x), {}
  if not x.waitpoints then return out, 0, 0 end
  local flat = redis.call("HGETALL", keys.waitpoints(p, x.id))
  for i = 1, #flat, 2 do
    if flat[i] == "m" then
      if not seen.open then read_meta(seen, flat[i + 1]) end
    else
      local row = seen.rows[flat[i]] or waitpoints.read(flat[i + 1])
      if row then
        seen.rows[flat[i]] = row
        out[#out + 1] = { flat[i], row }
      end
    end
  end
  if not seen.open then read_meta(seen) end
  table.sort(out, function(l, r) return l[1] < r[1] end)
  return out, seen.open, seen.next_at
end

local function save(p, x, id, row)
  local seen = fetch(p, x, id)
  seen.rows[id] = row
  redis.call("HSET", keys.waitpoints(p, x.id), id, text_of(p, row), "m", seen.open .. " " .. string.format("%.0f", seen.next_at))
  if not x.waitpoints then record.write(p, x, "waitpoints", "1") end
end

-- ---- kids ----------------------------------------------------------------------------------------------

-- The kid that signs here, and of another kid until when it verifies (nil: it is not known).
function waitpoints.kid(p, kid)
  local got = redis.call("HMGET", keys.kids(p), "current", "k" .. (kid or ""))
  local fingerprint, until_ms = string.match(got[2] or "", "^(%x+) (%d+)$")
  return got[1] or nil, tonumber(until_ms), fingerprint
end

-- Whether a kid's tokens open anything now.
function waitpoints.verifies(p, kid)
  local current, until_ms = waitpoints.kid(p, kid)
  return kid == current or (until_ms ~= nil and until_ms > p.now)
end

-- `opened` only rises: a checker that sees it stand still knows that nothing was opened while it read.
local function count_kid(p, kid, by)
  if not kid then return end
  redis.call("HINCRBY", keys.kids(p), "n" .. kid, by)
  if by > 0 then redis.call("HINCRBY", keys.kids(p), "opened", 1) end
end

-- ---- open, activate, close -----------------------------------------------------------------------------

-- Why some waitpoints cannot be opened together, or nil. A spec: { id, key, expires_in_ms (nil: never), kid, digest (nil,
-- both: no token opens it) }. One that is there already under this id and key is no reason: the call was sent again.
function waitpoints.refuse_open(p, x, specs)
  local fresh, current = 0, nil
  for i = 1, #specs do
    local spec = specs[i]
    if not string.find(spec.id, UUID) then return reply.reject("invalid_input", "waitpoint_id") end
    if spec.key == "" or #spec.key > LIMITS.KEY_BYTES or string.find(spec.key, "%c") then return reply.reject("invalid_waitpoint_key", "1 to " .. LIMITS.KEY_BYTES .. " bytes, no control characters") end
    local ttl = spec.expires_in_ms
    if ttl and (ttl < 1 or ttl > LIMITS.SPAN_MAX_MS) then return reply.reject("invalid_input", "expires_in_ms") end
    if (spec.kid and true or false) ~= (spec.digest and true or false) then return reply.reject("invalid_input", "kid and token_digest belong together") end
    if spec.digest and not (#spec.digest == 64 and string.find(spec.digest, "^[%da-f]+$")) then return reply.reject("invalid_input", "token_digest") end
    local there = waitpoints.load(p, x, spec.id)
    if there and there.key ~= spec.key then return reply.reject("waitpoint_already_exists", spec.id) end
    if not there then
      fresh = fresh + 1
      if spec.kid then
        if not current then current = waitpoints.kid(p) or "" end
        if spec.kid ~= current then
          return reply.reject("invalid_kid", dot(current))   -- the one that signs here; the backend goes by it
        end
      end
    end
    if known(p, x).open + fresh > LIMITS.WAITPOINTS_N then
      return reply.reject("waitpoint_limit_exceeded", LIMITS.WAITPOINTS_N .. " are open")
    end
  end
end

-- Closed rows answer late signals; when there are very many, the older half is forgotten. Their tokens then open nothing.
local function make_room(p, x)
  local key = keys.waitpoints(p, x.id)
  if redis.call("HLEN", key) <= LIMITS.WAITPOINTS_KEPT_N then return end
  local all, closed, gone = waitpoints.all(p, x), {}, {}
  for i = 1, #all do if all[i][2].state == "closed" then closed[#closed + 1] = all[i] end end
  table.sort(closed, function(l, r) return l[2].created < r[2].created or (l[2].created == r[2].created and l[1] < r[1]) end)
  for i = 1, math.floor(#closed / 2) do
    gone[i] = closed[i][1]
    known(p, x).rows[gone[i]] = false
  end
  if #gone > 0 then redis.call("HDEL", key, unpack(gone)) end
end

-- Open a pending waitpoint (spec as above). A refusal, or nil when it is open; one that was there stays as it is.
function waitpoints.open(p, x, spec)
  local refusal = waitpoints.refuse_open(p, x, { spec })
  if refusal then return refusal end
  local seen = fetch(p, x, spec.id)
  if seen.rows[spec.id] then return nil end
  if x.waitpoints then make_room(p, x) end
  local expires = spec.expires_in_ms and p.now + spec.expires_in_ms
  seen.open = seen.open + 1
  if expires and (seen.next_at == 0 or expires < seen.next_at) then
    seen.next_at = expires
    timers.set(p, "waitpoint", x.id, expires)
  end
  count_kid(p, spec.kid, 1)
  save(p, x, spec.id, { state = "pending", created = p.now, expires = expires, kid = spec.kid, digest = spec.digest, key = spec.key })
end

-- Why an execution cannot wait at one of its waitpoints, or nil.
function waitpoints.refuse_use(p, x, id)
  local row = waitpoints.load(p, x, id)
  if not row then return reply.reject("waitpoint_not_found", string.sub(id, 1, 64)) end
  if row.state == "pending" and row.expires and row.expires <= p.now then return reply.reject("pending_waitpoint_expired", id) end
  if row.state ~= "pending" then return reply.reject("waitpoint_not_pending", row.state .. (row.reason and ": " .. row.reason or "")) end
end

-- It waits here now, as waitpoint number `index` of its condition. Ask refuse_use first.
function waitpoints.activate(p, x, id, index)
  local row = waitpoints.load(p, x, id)
  row.state, row.index, row.activated = "active", index, p.now
  save(p, x, id, row)
end

-- The wait is over and the waitpoint stays open for a later one, with the signals it keeps only if `retain`.
function waitpoints.release(p, x, id, retain)
  local row = waitpoints.load(p, x, id)
  if not row or row.state ~= "active" then return end
  if not retain then waitpoints.discard(p, x, id) end
  -- Its time as a pending one is behind it: it is open until the execution closes it or ends.
  row.state, row.index, row.expires = "pending", nil, nil
  save(p, x, id, row)
end

-- What is kept for a closed waitpoint goes with it; but a replay may open again what only the execution's end has closed.
local function shut(p, x, id, row, reason)
  local seen = known(p, x)
  row.state, row.index, row.reason = "closed", nil, string.gsub(names.cut(reason, 64), "[%c%s]", "_")
  if row.reason == "" then row.reason = nil end
  seen.open = math.max(0, seen.open - 1)
  count_kid(p, row.kid, -1)
  if row.reason ~= "ended" then waitpoints.discard(p, x, id) end
end

-- Close one; whether it was open.
function waitpoints.close(p, x, id, reason)
  local row = waitpoints.load(p, x, id)
  if not row or row.state == "closed" then return false end
  shut(p, x, id, row, reason)
  save(p, x, id, row)
  return true
end

-- Close all that are open, at most LIMITS.WAITPOINTS_N.
function waitpoints.close_all(p, x, reason)
  if not x.waitpoints then return end
  local all, seen = waitpoints.all(p, x), known(p, x)
  for i = 1, #all do
    if all[i][2].state ~= "closed" then
      shut(p, x, all[i][1], all[i][2], reason)
      save(p, x, all[i][1], all[i][2])
    end
  end
  if seen.next_at ~= 0 then
    seen.next_at = 0
    timers.clear(p, "waitpoint", x.id)
    redis.call("HSET", keys.waitpoints(p, x.id), "m", seen.open .. " 0")
  end
end

-- The execution ended, and is replayed with what it had done: what its end alone closed is open again.
function waitpoints.reopen(p, x)
  local all, seen = waitpoints.all(p, x), known(p, x)
  for i = 1, #all do
    local row = all[i][2]
    if row.state == "closed" and row.reason == "ended" and seen.open < LIMITS.WAITPOINTS_N then
      seen.open = seen.open + 1
      row.state, row.reason, row.expires = "pending", nil, nil
      count_kid(p, row.kid, 1)
      save(p, x, all[i][1], row)
    end
  end
end

-- Forget all of it: the execution begins anew (a fresh replay, ContinueAs).
function waitpoints.clear(p, x)
  if not x.waitpoints then return end
  waitpoints.close_all(p, x, "cleared")
  redis.call("UNLINK", keys.waitpoints(p, x.id), keys.signals(p, x.id))
  record.write(p, x, "waitpoints", false)
  if p.waitpoints then p.waitpoints[x.id] = nil end
  if p.signals then p.signals[x.id] = nil end
end

-- Pending waitpoints whose time is over close; the timer goes on to the next.
function waitpoints.expire(p, id)
  local x = record.load(p, id)
  if not x or not x.waitpoints or state.is_terminal(x.state) then return end
  local all, seen, soonest = waitpoints.all(p, x), known(p, x), 0
  for i = 1, #all do
    local row = all[i][2]
    if row.state == "pending" and row.expires then
      if row.expires <= p.now then
        shut(p, x, all[i][1], row, "expired")
        save(p, x, all[i][1], row)
        events.add(p, x, x.state, x.state, "waitpoint_closed " .. all[i][1] .. " expired")
      elseif soonest == 0 or row.expires < soonest then soonest = row.expires end
    end
  end
  seen.next_at = soonest
  redis.call("HSET", keys.waitpoints(p, x.id), "m", seen.open .. " " .. string.format("%.0f", soonest))
  if soonest > 0 then timers.set(p, "waitpoint", id, soonest) end
end

state.at_end[#state.at_end + 1] = function(p, x) waitpoints.close_all(p, x, "ended") end
journal.at_restart[#journal.at_restart + 1] = waitpoints.clear

-- ---- signals -------------------------------------------------------------------------------------------
-- A signal: { seq, waitpoint_id, id, name, category, source_type, source_identity, correlation_id, accepted_at, key, encoding,
-- payload, packed, operator }. `packed` is its eleven texts in this order; absent texts are empty. `operator`: it came
-- without a token, by an operator's hand; what a sender writes into source_type proves nothing. Kept are those that no
-- suspension has taken; a suspension keeps what it takes by itself.

function waitpoints.packed(signal)
  return waitpoints.pack(signal.waitpoint_id, signal.id, signal.name, signal.category, signal.source_type, signal.source_identity,
    signal.correlation_id, string.format("%.0f", signal.accepted_at), signal.key, signal.encoding, signal.payload)
end

local function signal_of(packed, seq)
  local t = waitpoints.unpack(packed, TEXTS_N)
  if not t then return nil end
  return { seq = seq, packed = packed, waitpoint_id = t[1], id = t[2], name = t[3], category = t[4], source_type = t[5], source_identity = t[6],
    correlation_id = t[7], accepted_at = tonumber(t[8]), key = t[9], encoding = t[10], payload = t[11] }
end

-- How many an execution has taken and keeps; read once per call.
function waitpoints.tally(p, x, text)
  p.signals = p.signals or {}
  local t = p.signals[x.id]
  if not t then
    text = text or redis.call("HGET", keys.signals(p, x.id), "n") or ""
    local total, kept, bytes = string.match(text, "^(%d+) (%d+) (%d+)$")
    t = { total = tonumber(total or "0"), kept = tonumber(kept or "0"), bytes = tonumber(bytes or "0") }
    p.signals[x.id] = t
  end
  return t
end

function waitpoints.tally_text(t) return string.format("%.0f %.0f %.0f", t.total, t.kept, t.bytes) end

-- What a waitpoint keeps, in order of arrival. It is known how many that are and where they begin, so the search ends.
function waitpoints.buffered(p, x, id)
  local out, t = {}, waitpoints.tally(p, x)
  if t.kept == 0 then return out end
  local key = keys.signals(p, x.id)
  local first, kept = string.match(redis.call("HGET", key, "c" .. id) or "", "^(%d+) (%d+)$")
  local at, left = tonumber(first or "0"), tonumber(kept or "0")
  while left > 0 and at <= t.total do
    local fields = {}
    for n = at, math.min(t.total, at + 499) do fields[#fields + 1] = "s" .. n end
    local got = redis.call("HMGET", key, unpack(fields))
    for i = 1, #fields do
      local signal = got[i] and string.sub(got[i], 4, 39) == id and signal_of(got[i], at + i - 1)
      if signal then
        out[#out + 1] = signal
        left = left - 1
      end
    end
    at = at + 500
  end
  return out
end

-- Take signals out of what is kept: they have done their work. What their keys were answered stays.
function waitpoints.consume(p, x, signals)
  if #signals == 0 then return end
  local key, t, gone, order, took = keys.signals(p, x.id), waitpoints.tally(p, x), {}, {}, {}
  for i = 1, #signals do
    local signal = signals[i]
    gone[i] = "s" .. signal.seq
    t.kept, t.bytes = t.kept - 1, t.bytes - #signal.packed
    if not took[signal.waitpoint_id] then order[#order + 1] = signal.waitpoint_id end
    took[signal.waitpoint_id] = (took[signal.waitpoint_id] or 0) + 1
  end
  local set, empty = { "n", waitpoints.tally_text(t) }, {}
  for i = 1, #order do
    local first, n = string.match(redis.call("HGET", key, "c" .. order[i]) or "0 0", "^(%d+) (%d+)$")
    local left = tonumber(n) - took[order[i]]
    if left > 0 then set[#set + 1], set[#set + 2] = "c" .. order[i], first .. " " .. left
    else gone[#gone + 1] = "c" .. order[i] end
  end
  for from = 1, #gone, 500 do redis.call("HDEL", key, unpack(gone, from, math.min(#gone, from + 499))) end
  redis.call("HSET", key, unpack(set))   -- two texts for each waitpoint, of which a call names 64
end

-- Keep a signal again that a suspension had taken, under the number it had; not where nothing can wait for it any more.
function waitpoints.restore(p, x, packed, number)
  local signal = signal_of(packed, tonumber(number))
  local row = waitpoints.load(p, x, signal.waitpoint_id)
  if not row or row.state == "closed" then return end
  local key, t = keys.signals(p, x.id), waitpoints.tally(p, x)
  local first, n = string.match(redis.call("HGET", key, "c" .. signal.waitpoint_id) or "", "^(%d+) (%d+)$")
  t.kept, t.bytes = t.kept + 1, t.bytes + #packed
  redis.call("HSET", key, "s" .. number, packed, "n", waitpoints.tally_text(t),
    "c" .. signal.waitpoint_id, math.min(tonumber(first or number), signal.seq) .. " " .. (tonumber(n or "0") + 1))
end

-- Drop what a waitpoint keeps.
function waitpoints.discard(p, x, id)
  if waitpoints.tally(p, x).kept > 0 then waitpoints.consume(p, x, waitpoints.buffered(p, x, id)) end
end

end
