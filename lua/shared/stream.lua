-- shared/stream.lua -- frames of an execution: emitted by its attempts, read while they come.
--
-- Every attempt has two streams of its own, one of frames that are kept and one of frames for whoever looks now
-- (`best_effort`), each trimmed by itself: neither kind can push out the other. Their ids are drawn from one counter
-- of the execution (keys.frames), not from the clock, so they rise over both streams, over all attempts, and when a
-- clock steps back. A reader merges the two by id, and one id says where he stands in the whole execution.
--
-- An append is told from its repeat by an operation number, counted by the holder from the beginning of its lease.

local stream = {}

local MODES = { append = true, best_effort = true }
local PAGE_N = 64   -- entries fetched at once: at most a few MiB, however many are asked for
local FRAME_COST = 512 -- bytes that a frame counts beside its payload: so many take as long to answer
local FEWEST_N = 64 -- however large frames are, so many are kept

local function key_of(p, x, attempt_index, mode)
  return mode == "append" and keys.stream(p, x.id, attempt_index) or keys.live(p, x.id, attempt_index)
end

-- ---- appending ---------------------------------------------------------------------------------------

-- Why a frame cannot be taken, or nil. Columns: frame_type, mode, payload, encoding?, correlation_id?.
function stream.refusal(row)
  if row.bad then return reply.reject("invalid_input", row.bad) end
  if not MODES[row.mode] then return reply.reject("invalid_input", "mode: append or best_effort") end
  local name = row.frame_type
  if name == "" or #name > LIMITS.NAME_BYTES or string.find(name, "%c") then return reply.reject("invalid_frame_type", names.cut(name, 40)) end
  if #row.payload > LIMITS.FRAME_BYTES then return reply.reject("payload_too_large", "a frame of " .. #row.payload .. " bytes, the limit is " .. LIMITS.FRAME_BYTES) end
  if row.correlation_id and #row.correlation_id > LIMITS.NAME_BYTES then return reply.reject("invalid_input", "correlation_id") end
  if not attempt.fits(row.encoding) then return reply.reject("invalid_input", "encoding") end
end

-- How far the execution's streams are: last id, frames of the attempt, their sizes, last operation of the lease.
function stream.open(p, x)
  local key = keys.frames(p, x.id)
  local kept = redis.call("HGET", key, "at")
  local s = { key = key, ms = 0, seq = 0, n = 0, kept_size = 0, live_size = 0, epoch = x.lease_epoch, op = 0, op_id = "-" }
  if kept then
    local index, ms, seq, n, kept_size, live_size, epoch, op, op_id = string.match(kept, "^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+)$")
    s.index, s.ms, s.seq = index, tonumber(ms), tonumber(seq)
    if index == x.attempt then s.n, s.kept_size, s.live_size = tonumber(n), tonumber(kept_size), tonumber(live_size) end
    if epoch == x.lease_epoch then s.op, s.op_id = tonumber(op), op_id end
  end
  return s
end

-- The first frame of an attempt: note where it begins. The streams of the oldest attempts go when there are many.
local function begin(p, x, s, id)
  local words = {}
  for word in string.gmatch(redis.call("HGET", s.key, "list") or "", "%S+") do words[#words + 1] = word end
  words[#words + 1] = x.attempt .. ":" .. id
  while #words > LIMITS.STREAMS_N do
    local index = string.match(table.remove(words, 1), "^(%d+):")
    redis.call("UNLINK", key_of(p, x, index, "append"), key_of(p, x, index, "best_effort"))
  end
  redis.call("HSET", s.key, "list", table.concat(words, " "))
  s.index = x.attempt
  record.write(p, x, "streams", x.attempt)
end

-- How many frames a stream keeps: fewer when they are large, by what the last few dozen of them weighed.
local function room(most, bytes, size)
  if size * most <= bytes then return most end
  return math.max(FEWEST_N, math.floor(bytes / size))
end

local function average(size, given)
  if size == 0 or size == given then return given end
  return math.floor(size + (given - size) / 32 + 0.5)
end

-- Append one frame that stream.refusal lets pass, of the holder that the fence check let pass. Answers its id.
-- `maxlen`: how many frames of its kind to keep instead of the usual number, 0 for all.
function stream.add(p, x, s, row, maxlen)
  local seq = s.seq + 1
  if p.now > s.ms then s.ms, seq = p.now, 0 end
  s.seq = seq
  local id = record.text(p, s.ms) .. "-" .. seq
  if s.index ~= x.attempt then begin(p, x, s, id) end
  local bytes, most = #row.payload, maxlen
  local key
  if row.mode == "append" then
    s.kept_size = average(s.kept_size, bytes)
    most = most or room(LIMITS.STREAM_FRAMES_N, LIMITS.STREAM_BYTES, s.kept_size)
    key = s.kept or key_of(p, x, x.attempt, "append")
    s.kept = key
  else
    s.live_size = average(s.live_size, bytes)
    most = most or room(LIMITS.LIVE_FRAMES_N, LIMITS.LIVE_BYTES, s.live_size)
    key = s.live or key_of(p, x, x.attempt, "best_effort")
    s.live = key
  end
  if most > 0 and not (row.encoding or row.correlation_id or row.timestamp) then
    redis.call("XADD", key, "MAXLEN", "~", most, id, "t", row.frame_type, "p", row.payload)
  else
    local entry = { "t", row.frame_type, "p", row.payload }
    local n = 4
    if row.encoding then entry[n + 1], entry[n + 2], n = "e", row.encoding, n + 2 end
    if row.correlation_id then entry[n + 1], entry[n + 2], n = "c", row.correlation_id, n + 2 end
    if row.source then entry[n + 1], entry[n + 2], n = "s", row.source, n + 2 end
    if row.timestamp then entry[n + 1], entry[n + 2], n = "w", row.timestamp, n + 2 end
    if row.metadata then entry[n + 1], entry[n + 2], n = "m", row.metadata, n + 2 end
    if most == 0 then redis.call("XADD", key, id, unpack(entry, 1, n))
    else redis.call("XADD", key, "MAXLEN", "~", most, id, unpack(entry, 1, n)) end
  end
  s.n = s.n + 1
  if row.op then s.op, s.op_id = row.op, id end
  s.last = id
  return id
end

-- Keep how far the streams are, and tell whoever reads.
function stream.close(p, x, s)
  if not s.last then return end
  redis.call("HSET", s.key, "at", string.format("%s %s %d %d %d %d %s %s %s", s.index, record.text(p, s.ms), s.seq, s.n, s.kept_size,
    s.live_size, s.epoch, record.text(p, s.op), s.op_id))
  wake.readers(p, x, s.last)
end

-- Append frames in order, all of which stream.refusal lets pass: what travels with another report of the holder.
function stream.append_all(p, x, rows)
  if #rows == 0 then return end
  local s = stream.open(p, x)
  for i = 1, #rows do stream.add(p, x, s, rows[i]) end
  stream.close(p, x, s)
end

-- The same for one frame.
function stream.append(p, x, row) stream.append_all(p, x, { row }) end

-- ---- reading -----------------------------------------------------------------------------------------

-- Whether a text is an entry's id, or the millisecond of one; short enough for the store to read.
function stream.is_id(text)
  local ms, seq = string.match(text, "^(%d+)%-?(%d*)$")
  return ms ~= nil and #ms <= 15 and #seq <= 15 and string.sub(text, -1) ~= "-"
end

local function source(key, from, to, live, count)
  return { key = key, from = from, to = to, live = live, count = count, page = {}, at = 1 }
end

local function head(s)
  if s.at > #s.page and not s.dry then
    s.page, s.at = redis.call("XRANGE", s.key, s.from, s.to, "COUNT", s.count), 1
    s.dry = #s.page < s.count
    if #s.page > 0 then s.from = "(" .. s.page[#s.page][1] end
  end
  return s.page[s.at]
end

local function before(l, r)
  local lm, ls = string.match(l, "^(%d+)%-(%d+)$")
  local rm, rs = string.match(r, "^(%d+)%-(%d+)$")
  if lm ~= rm then return tonumber(lm) < tonumber(rm) end
  return tonumber(ls) < tonumber(rs)
end
stream.before = before

-- Frames of one attempt between two ids (the store's own notation), both streams merged; `take` gets id, the frame's
-- fields by name and whether it is a best-effort one. Stops after `limit` frames or LIMITS.CLAIM_BYTES in `out.bytes`;
-- true when it stopped with frames left.
function stream.read(p, id, index, from, to, limit, out, take, kept_only)
  local x = { id = id }
  local count = math.min(limit + 1, PAGE_N)
  local kept = source(key_of(p, x, index, "append"), from, to, false, count)
  local live = kept_only and { page = {}, at = 1, dry = true } or source(key_of(p, x, index, "best_effort"), from, to, true, count)
  for _ = 1, limit do
    local one, other = head(kept), head(live)
    local s = kept
    if other and (not one or before(other[1], one[1])) then s = live end
    local entry = s.page[s.at]
    if not entry then return false end
    if out.bytes > LIMITS.CLAIM_BYTES then return true end
    local fields, flat = {}, entry[2]
    for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
    out.bytes = out.bytes + #(fields.p or "") + FRAME_COST
    take(entry[1], fields, s.live)
    s.at = s.at + 1
  end
  return (head(kept) or head(live)) ~= nil
end

-- How many kept frames of an attempt are gone, if this is the oldest one that is left; 0: there is an older one.
function stream.dropped_before(p, id, index, oldest)
  local key = key_of(p, { id = id }, index, "append")
  if #redis.call("XRANGE", key, "-", "(" .. oldest, "COUNT", 1) > 0 then return 0 end
  local told, kept, added = redis.call("XINFO", "STREAM", key), 0, 0
  for i = 1, #told, 2 do
    if told[i] == "length" then kept = tonumber(told[i + 1])
    elseif told[i] == "entries-added" then added = tonumber(told[i + 1]) end
  end
  return math.max(0, added - kept)
end

-- The attempts that have frames here, in order: { index, id of the first }.
function stream.attempts(p, id)
  local list, out = redis.call("HGET", keys.frames(p, id), "list"), {}
  for index, first in string.gmatch(list or "", "(%d+):(%S+)") do out[#out + 1] = { index, first } end
  return out
end

-- The last id drawn, "0-0" when there is none.
function stream.last(p, id)
  local ms, seq = string.match(redis.call("HGET", keys.frames(p, id), "at") or "", "^%d+ (%d+) (%d+) ")
  return ms and ms .. "-" .. seq or "0-0"
end

-- When and how an attempt's stream was closed, or nil while frames may follow: an attempt that was interrupted to go
-- on later is the same one.
local CLOSED = { ended_success = "attempt_success", ended_failure = "attempt_failure", ended_cancelled = "attempt_cancelled",
  interrupted_reclaimed = "attempt_interrupted", completed = "attempt_success", failed = "attempt_failure", cancelled = "attempt_cancelled",
  expired = "attempt_failure", skipped = "attempt_cancelled" }

function stream.closed(p, x, index)
  local log = redis.call("LRANGE", keys.attempts(p, x.id), 0, -1)
  for i = #log, 1, -1 do
    local found, ended, how = string.match(log[i], "^(%d+) %S+ %S* %d+ (%d+) (%S+)")
    if found == index then return ended, CLOSED[how] or "attempt_interrupted" end
  end
  local current = record.number(x, "attempt")
  if state.is_terminal(x.state) then return x.at, tonumber(index) < current and "attempt_interrupted" or CLOSED[x.state] end
  -- Older than the log goes back.
  if tonumber(index) < current then return attempt.started_at(x), "attempt_interrupted" end
end

-- ---- ending ------------------------------------------------------------------------------------------

-- All streams go, with the record.
function stream.forget(p, x)
  local list = stream.attempts(p, x.id)
  for i = 1, #list do redis.call("UNLINK", key_of(p, x, list[i][1], "append"), key_of(p, x, list[i][1], "best_effort")) end
  redis.call("UNLINK", keys.frames(p, x.id))
end
