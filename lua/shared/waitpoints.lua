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
-- suspends on it, active while it waits there, closed for good. Checks come first (refuse_*), then writes. What keeps and
-- drops signals is in shared/kept.lua.

local waitpoints = {}

do   -- helpers of this file; a chunk holds 200 locals

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"

-- ---- texts ---------------------------------------------------------------------------------------------

-- A text behind its length in bytes and a colon. Short lengths are kept as text: making one costs as much as the rest.
local HEADS = {}
function waitpoints.text(value)
  local n = #value
  local head = HEADS[n]
  if not head then
    head = n .. ":"
    if n < 256 then HEADS[n] = head end
  end
  return head .. value
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
  return { state = word, created = created, activated = plain(activated), expires = plain(expires) and tonumber(expires), kid = plain(kid),
    digest = plain(digest), index = plain(index) and tonumber(index), reason = plain(reason), key = key }
end

local function text_of(p, row)
  return row.state .. " " .. row.created .. " " .. (row.activated or ".") .. " " .. (row.expires and record.text(p, row.expires) or ".") .. " "
    .. dot(row.kid) .. " " .. (row.digest or ".") .. " " .. (row.index or ".") .. " " .. (row.reason or ".") .. " " .. row.key
end

-- What this call has read of an execution's waitpoints: rows by id, how many are open, the next expiry; and, while some
-- of it is to be written, what.
local function known(p, x)
  local all = p.waitpoints
  if not all then
    all = {}
    p.waitpoints = all
  end
  local seen = all[x.id]
  if not seen then
    seen = { rows = {}, open = false, next_at = 0, noted = false, key = false }
    all[x.id] = seen
  end
  return seen
end

local function read_meta(seen, meta)
  if not meta then
    seen.open, seen.next_at = 0, 0
    return
  end
  local open, next_at = string.match(meta, "^(%d+) (%d+)$")
  seen.open, seen.next_at = tonumber(open), next_at == "0" and 0 or tonumber(next_at)
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

-- A waitpoint of this execution, or nil: { state, created, activated, expires, kid, digest, index, reason, key }; the
-- first two instants as text. No other row of the hash has a name as long as an id.
function waitpoints.load(p, x, id)
  if #id ~= 36 then return nil end
  return fetch(p, x, id).rows[id] or nil
end

-- Every waitpoint of an execution, in the order of their ids: { { id, row }, ... }; how many are open by their count, and
-- when the next one expires (0: none).
function waitpoints.all(p, x)
  local seen, out = known(p, x), {}
  if not x.waitpoints then return out, 0, 0 end
  waitpoints.flush(p)
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

-- A row (nil: none) and the counts have changed. Written once, when the call closes or somebody reads all rows.
local function note(p, x, seen, id, row)
  local noted = seen.noted
  if not noted then
    noted = id and { id, [id] = true } or {}
    seen.noted, seen.key = noted, keys.waitpoints(p, x.id)
    local list = p.waitpoint_writes
    if list then list[#list + 1] = seen else p.waitpoint_writes = { seen } end
  end
  if not id then return end
  seen.rows[id] = row
  if not noted[id] then noted[id], noted[#noted + 1] = true, id end
  if not x.waitpoints then record.write(p, x, "waitpoints", "1") end
end

local function save(p, x, id, row) note(p, x, fetch(p, x, id), id, row) end

-- ---- kids ----------------------------------------------------------------------------------------------

-- The rows of a kid, read once per call: the kid that signs, this one's own, its count, how many were ever opened.
local function rows_of(p, kid)
  local all = p.kids
  local got = all and all[kid]
  if not got then
    got = redis.call("HMGET", keys.kids(p), "current", "k" .. kid, "n" .. kid, "opened")
    if all then all[kid] = got else p.kids = { [kid] = got } end
  end
  return got
end

-- The kid that signs here, and of another kid until when it verifies (nil: it is not known).
function waitpoints.kid(p, kid)
  local got = rows_of(p, kid)
  local fingerprint, until_ms = string.match(got[2] or "", "^(%x+) (%d+)$")
  return got[1] or nil, tonumber(until_ms), fingerprint
end

-- Whether a kid's tokens open anything now.
function waitpoints.verifies(p, kid)
  if kid == rows_of(p, kid)[1] then return true end
  local _, until_ms = waitpoints.kid(p, kid)
  return until_ms ~= nil and until_ms > p.now
end

-- `opened` only rises: a checker that sees it stand still knows that nothing was opened while it read.
local function count_kid(p, kid, by)
  if not kid then return end
  local got, set = rows_of(p, kid), p.kid_writes
  if not set then
    set = {}
    p.kid_writes = set
  end
  if by > 0 then set.opened = (set.opened or tonumber(got[4] or "0")) + by end
  if not got.noted then got.noted, set[#set + 1] = true, kid end
  got[3] = tonumber(got[3] or "0") + by
end

-- Write what was noted.
function waitpoints.flush(p)
  local list = p.waitpoint_writes
  if list then
    p.waitpoint_writes = nil
    for i = 1, #list do
      local seen = list[i]
      local noted, set = seen.noted, { "m", seen.open .. " " .. record.text(p, seen.next_at) }
      if noted then
        seen.noted = nil
        for n = 1, #noted do set[#set + 1], set[#set + 2] = noted[n], text_of(p, seen.rows[noted[n]]) end
        redis.call("HSET", seen.key, unpack(set))   -- no call changes more than all that are open, and twice these
      end
    end
  end
  local counted = p.kid_writes
  if counted then
    local set, n = {}, 0
    for i = 1, #counted do set[n + 1], set[n + 2], n = "n" .. counted[i], p.kids[counted[i]][3], n + 2 end
    if counted.opened then set[n + 1], set[n + 2] = "opened", counted.opened end
    redis.call("HSET", keys.kids(p), unpack(set))
    p.kid_writes, p.kids = nil, nil
  end
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
        if not current then current = rows_of(p, spec.kid)[1] or "" end
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
  table.sort(closed, function(l, r)
    if l[2].created ~= r[2].created then return tonumber(l[2].created) < tonumber(r[2].created) end
    return l[1] < r[1]
  end)
  for i = 1, math.floor(#closed / 2) do
    gone[i] = closed[i][1]
    known(p, x).rows[gone[i]] = false
  end
  if #gone > 0 then redis.call("HDEL", key, unpack(gone)) end
end

-- Open a pending waitpoint (spec as above; ask refuse_open first). One that was there stays as it is.
function waitpoints.open(p, x, spec)
  local seen = fetch(p, x, spec.id)
  if seen.rows[spec.id] then return end
  if x.waitpoints then make_room(p, x) end
  local expires = spec.expires_in_ms and p.now + spec.expires_in_ms
  seen.open = seen.open + 1
  if expires and (seen.next_at == 0 or expires < seen.next_at) then
    seen.next_at = expires
    timers.set(p, "waitpoint", x.id, expires)
  end
  count_kid(p, spec.kid, 1)
  note(p, x, seen, spec.id, { state = "pending", created = record.text(p, p.now), expires = expires, kid = spec.kid, digest = spec.digest, key = spec.key })
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
  row.state, row.index, row.activated = "active", index, record.text(p, p.now)
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
  row.state, row.index, row.reason = "closed", nil, reason
  seen.open = math.max(0, seen.open - 1)
  count_kid(p, row.kid, -1)
  if row.reason ~= "ended" and row.reason ~= "cleared" then waitpoints.discard(p, x, id) end
end

-- A reason of a caller's as a word of a row.
function waitpoints.word(reason) return (string.gsub(names.cut(reason, 64), "[%c%s]", "_")) end

-- Close one, with one word for why; whether it was open.
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
    note(p, x, seen)
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
  known(p, x).noted = nil
  p.waitpoints[x.id] = nil
  if p.signals then p.signals[x.id] = nil end
  if p.gathered then p.gathered[x.id] = nil end
end

-- Pending waitpoints whose time is over close; the timer goes on to the next.
function waitpoints.expire(p, id)
  local x = record.load(p, id)
  if not x or not x.waitpoints or state.is_terminal(x.state) then return end
  local all, seen, soonest, over = waitpoints.all(p, x), known(p, x), 0, {}
  for i = 1, #all do
    local row = all[i][2]
    if row.state == "pending" and row.expires and row.expires <= p.now then over[#over + 1] = all[i][1] end
  end
  waitpoints.gather(p, x, over, true)
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
  note(p, x, seen)
  if soonest > 0 then timers.set(p, "waitpoint", id, soonest) end
end

state.on_end(function(p, x) waitpoints.close_all(p, x, "ended") end)
journal.on_restart(waitpoints.clear)

end
