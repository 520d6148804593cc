-- shared/quotas.lua -- how many may start in a window, and run at once.
--
-- A quota counts for itself ("-") or for each key apart; what is counted together is a subject. Its window is the set of
-- starts, by instant: how many are in it is asked of the set, so it is exact to the millisecond and costs the same for a
-- million. Those that have left are taken out a few at a time, by later starts and by reap. Its places are the executions
-- that hold them, each with the epoch of the lease it was given under; whatever ends that lease gives it back by mail, and
-- a place past the end of its lease is asked for in the execution's own partition.
--
-- A subject is listed while anything is left of it, and every part has something that will look at it again: a place its
-- timer, a window the reap entry of its subject.

local quotas = {}
do -- helpers of this file; a chunk holds 200 locals

local TRIM_N = 10        -- old starts that a new one takes out
local SPARE_N = 1        -- queues woken beyond the places that are free: the first may have nothing left to run
local MORE_N = 16        -- the same when nobody has taken a place for a while
local AGAIN_MS = 1000    -- how long that is
local KEEP_MS = 24 * 3600 * 1000   -- no halt is longer
local REFUSED_N = 10000  -- queues that are remembered for one subject
local WAKES_N = 200      -- queues one run of a timer wakes
local FREE_N = 1000      -- jobs one wake lets through, at most
local OPEN = 9007199254740991   -- as many as there are
local DIGITS = 20        -- of the digest that stands for a key

local UUID = "%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x"
local EXECUTION = "^{fp:%d+}:" .. UUID .. "$"
local PARTITION = "^{fp:%d+}$"

function quotas.is_execution(text) return string.find(text, EXECUTION) ~= nil and #text <= 48 end

-- Keys come as words (ffcore/admission.py); names of their own key are their digests.
function quotas.is_key(word) return word ~= "" and #word <= LIMITS.KEY_BYTES and not string.find(word, "[^!-~]") end

-- Whose queues wait: a partition of executions, and an admission set or "lane:<quota>".
function quotas.is_queue(partition, adm)
  return string.find(partition, PARTITION) ~= nil and #partition <= 16 and #adm <= 64 and string.find(adm, "^[%w:%-]+$") ~= nil
end

function quotas.digest(word) return word == "-" and "-" or string.sub(redis.sha1hex(word), 1, DIGITS) end

function quotas.load(p, id)
  p.quotas = p.quotas or {}
  local q = p.quotas[id]
  if q == nil then
    local r = redis.call("HMGET", keys.quota(p, id), "window", "rate", "most", "gen", "name", "ns", "created")
    q = r[1] and { id = id, window = tonumber(r[1]), rate = tonumber(r[2]), most = tonumber(r[3]), gen = tonumber(r[4]),
      name = r[5], ns = r[6], created = tonumber(r[7]) } or false
    p.quotas[id] = q
  end
  return q or nil
end

-- The subject of a quota, by the digest of its key: places taken, starts that are kept, and how many of those have left
-- the window. Counted once per call, and kept up by what follows.
function quotas.subject(p, q, id, digest)
  p.subjects = p.subjects or {}
  local name = id .. " " .. digest
  local s = p.subjects[name]
  if not s then
    s = { id = id, digest = digest, name = name, window = keys.window(p, id, digest), running = keys.running(p, id, digest),
      refused = keys.refused(p, id, digest) }
    s.active = redis.call("HLEN", s.running)
    s.kept = redis.call("ZCARD", s.window)
    s.old = s.kept
    if s.kept > 0 and q and q.rate > 0 then s.old = redis.call("ZCOUNT", s.window, "-inf", p.now - q.window) end
    p.subjects[name] = s
  end
  return s
end

-- Take out starts that have left the window, oldest first. Answers how many.
local function trim(s, limit)
  local n = math.min(s.old, limit)
  if n > 0 then
    redis.call("ZREMRANGEBYRANK", s.window, 0, n - 1)
    s.kept, s.old = s.kept - n, s.old - n
  end
  return n
end

-- How long until a window of `window` ms lets another start, if `rate` may be in it. 0: it does now.
function quotas.wait(p, s, window, rate)
  if rate == 0 or s.kept < rate then return 0 end
  local at = redis.call("ZRANGE", s.window, s.kept - rate, s.kept - rate, "WITHSCORES")[2]
  return math.max(0, tonumber(at) + window - p.now)
end

function quotas.start(execution_id, epoch) return string.sub(execution_id, -36) .. "." .. epoch end

-- The list of a quota's subjects has "<digest> <key>", in the order of the digests. The key behind a digest; nil when it is
-- not listed.
function quotas.word(p, id, digest)
  local member = redis.call("ZRANGE", keys.subjects(p, id), "[" .. digest .. " ", "(" .. digest .. "!", "BYLEX", "LIMIT", 0, 1)[1]
  return member and string.sub(member, #digest + 2)
end

-- Nothing is left of it: nobody need know its key.
local function forget(p, s)
  local word = quotas.word(p, s.id, s.digest)
  if word then redis.call("ZREM", keys.subjects(p, s.id), s.digest .. " " .. word) end
end

-- A queue was refused: it is told once when it may ask again. Whom the window refused knows that by itself, and is told
-- only of other limits and of starts that are taken back. Such stand below zero; the instant is when it is out of date, so
-- what lies between minus now and now is.
local function remember(p, s, row, word, until_ms)
  if row.adm == "" then return end
  redis.call("ZADD", s.refused, word == "rate" and -until_ms or until_ms, row.partition .. " " .. row.adm)
  if redis.call("ZCARD", s.refused) > REFUSED_N then redis.call("ZREMRANGEBYRANK", s.refused, 0, 0) end
end

-- Take a place and a start, or say why not: admitted, already, rate, concurrency, and how long to wait. `row`: execution_id,
-- key, epoch, until_ms, partition, adm.
function quotas.admit(p, q, s, row)
  local epoch = string.format("%.0f", row.epoch)
  local start = quotas.start(row.execution_id, epoch)
  local place = s.active > 0 and redis.call("HGET", s.running, row.execution_id)
  local at = s.kept > 0 and redis.call("ZSCORE", s.window, start)
  if place == epoch or at and tonumber(at) > p.now - q.window then
    fence.replayed(p)
    return "already", 0
  end
  -- A later lease of it is here: whoever asks has lost his.
  if place and tonumber(place) > row.epoch then return "concurrency", LIMITS.HALT_MS end
  local wait = quotas.wait(p, s, q.window, q.rate)
  if wait > 0 then
    remember(p, s, row, "rate", p.now + wait)
    return "rate", wait
  end
  -- The place of an earlier lease of the same execution is its own.
  if q.most > 0 and not place and s.active >= q.most then
    remember(p, s, row, "concurrency", p.now + KEEP_MS)
    return "concurrency", LIMITS.HALT_MS
  end
  quotas.take(p, q, s, row, q.most > 0)
  return "admitted", 0
end

-- `as`: what tells this start from others of the execution, where that is not its lease's epoch.
function quotas.take(p, q, s, row, with_place, as)
  local epoch = string.format("%.0f", row.epoch)
  if s.active == 0 and s.kept == 0 then redis.call("ZADD", keys.subjects(p, s.id), 0, s.digest .. " " .. row.key) end
  if q.rate > 0 then
    if s.kept == 0 then timers.reap_first(p, "subject", s.name, p.now + q.window) end
    -- The same start may be there still, from a window that is over.
    if redis.call("ZADD", s.window, p.now, quotas.start(row.execution_id, as or epoch)) == 1 then s.kept = s.kept + 1
    else s.old = s.old - 1 end
    trim(s, TRIM_N)
  end
  if with_place then
    s.active = s.active + redis.call("HSET", s.running, row.execution_id, epoch)
    timers.set(p, "place", s.name .. " " .. row.execution_id, math.min(math.max(row.until_ms, p.now), p.now + LIMITS.LEASE_TTL_MAX_MS))
  end
end

local function tell(p, id, gen, member, allow)
  local partition, adm = string.match(member, "^(%S+) (%S+)$")
  inbox.wake(p, partition, "unhalt", adm .. " " .. id .. string.format(" %.0f %.0f", gen, allow))
end

local function rest(p, s)
  if s.active == 0 and s.kept == 0 and redis.call("EXISTS", s.refused) == 0 then forget(p, s) end
end

local function refused_for(s, from, to, limit)
  if limit <= 0 then return {} end
  if from > 0 then return redis.call("ZRANGE", s.refused, from, to, "BYSCORE", "LIMIT", 0, limit) end
  return redis.call("ZRANGE", s.refused, from, to, "BYSCORE", "REV", "LIMIT", 0, limit)
end

-- Wake queues for as many as may start now, and `spare` more: those refused longest ago. A queue is forgotten with that:
-- more of its jobs ask than may start, so it is refused again, or has nothing left to ask for. When places stay free and
-- queues wait, those that were woken had nothing left: a timer wakes others.
function quotas.wake(p, q, s, spare)
  if redis.call("EXISTS", s.refused) == 0 then return rest(p, s) end
  redis.call("ZREMRANGEBYSCORE", s.refused, -p.now, p.now)
  local places = q.most > 0 and q.most - s.active or FREE_N
  if places <= 0 then return end
  local again, windows = quotas.wait(p, s, q.window, q.rate), s.returned or s.kept == 0
  if again == 0 then
    local free = math.min(places, q.rate > 0 and q.rate - (s.kept - s.old) or FREE_N, FREE_N)
    local n = math.min(free + spare, WAKES_N)
    local list = refused_for(s, 1, "+inf", n)
    local others = windows and refused_for(s, -1, "-inf", n - #list) or {}
    for i = 1, #others do list[#list + 1] = others[i] end
    if #list > 0 then redis.call("ZREM", s.refused, unpack(list)) end
    for i = 1, #list do tell(p, s.id, q.gen, list[i], math.ceil(free / #list)) end
    again = AGAIN_MS
  end
  if redis.call("ZCOUNT", s.refused, s.kept == 0 and "-inf" or 1, "+inf") > 0 then timers.set(p, "freed", s.name, p.now + again) end
  rest(p, s)
end

-- Something was given back. `later`: by a call that answers no wakes.
local function freed(p, q, s, later)
  if not q then return rest(p, s) end
  q.gen = redis.call("HINCRBY", keys.quota(p, s.id), "gen", 1)
  if later then timers.set(p, "freed", s.name, p.now)
  else
    p.freed = p.freed or {}
    p.freed[#p.freed + 1] = { q, s }
  end
end

-- Once for all rows of a call.
inbox.after(function(p)
  local list, told = p.freed or {}, {}
  for i = 1, #list do
    local q, s = list[i][1], list[i][2]
    if not told[s.name] then quotas.wake(p, q, s, SPARE_N) end
    told[s.name] = true
  end
end)

-- Give back the place an execution holds under this lease or an earlier one; the start as well, when it did not start.
-- Answers whether there was something to give back.
function quotas.release(p, q, s, execution_id, epoch, undo, later)
  local place = redis.call("HGET", s.running, execution_id)
  local gone = place and tonumber(place) <= epoch
  if gone then
    s.active = s.active - redis.call("HDEL", s.running, execution_id)
    timers.clear(p, "place", s.name .. " " .. execution_id)
  end
  local taken_back = 0
  if undo and s.kept > 0 then
    local start = quotas.start(execution_id, string.format("%.0f", epoch))
    local at = redis.call("ZSCORE", s.window, start)
    taken_back = redis.call("ZREM", s.window, start)
    s.kept = s.kept - taken_back
    if taken_back > 0 and not (q and q.rate > 0 and tonumber(at) > p.now - q.window) then s.old = s.old - 1 end
  end
  if taken_back > 0 and s.kept == 0 then timers.unreap(p, "subject", s.name) end
  if not gone and taken_back == 0 then return false end
  s.returned = s.returned or taken_back > 0
  freed(p, q, s, later)
  return true
end

-- ---- mail --------------------------------------------------------------------------------------------

-- "q <quota> <key> <execution> <epoch> <0 | 1>"; nil when it cannot be read.
local function read(body)
  local id, word, execution_id, epoch, flag = string.match(body, "^q (%S+) (%S+) (%S+) (%d+) ([01])$")
  if not id or not string.find(id, "^" .. UUID .. "$") or not quotas.is_execution(execution_id) or #epoch > 16 then return nil end
  return id, word, execution_id, tonumber(epoch), flag == "1"
end

-- A lease has ended.
inbox.on("settle q", function(p, body)
  local id, word, execution_id, epoch, undo = read(body)
  if not id then return end
  local q = quotas.load(p, id)
  quotas.release(p, q, quotas.subject(p, q, id, quotas.digest(word)), execution_id, epoch, undo)
end)

-- What the partition of an execution says of a place it was asked about. Only of the lease that was asked for: it may
-- have another by now.
inbox.on("verified q", function(p, body)
  local id, word, execution_id, epoch, held = read(body)
  if not id or held then return end
  local q = quotas.load(p, id)
  local s = quotas.subject(p, q, id, quotas.digest(word))
  if redis.call("HGET", s.running, execution_id) == string.format("%.0f", epoch) then
    quotas.release(p, q, s, execution_id, epoch, false)
  end
end)

-- ---- timers ------------------------------------------------------------------------------------------

-- A place past the end of its lease, and again from time to time: the lease may have been renewed.
due.on("place", function(p, name)
  local id, digest, execution_id = string.match(name, "^(%S+) (%S+) (%S+)$")
  local epoch = id and redis.call("HGET", keys.running(p, id, digest), execution_id)
  if not epoch then return end
  timers.set(p, "place", name, p.now + LIMITS.RESERVATION_MS)
  local word = quotas.word(p, id, digest) or digest
  -- A place that was taken without a lease is kept for as long as the execution runs.
  inbox.wake(p, string.match(execution_id, "^{%a+:%d+}"), epoch == "0" and "runs" or "verify",
    p.tag .. " q " .. id .. " " .. word .. " " .. execution_id .. " " .. epoch)
end)

due.on("freed", function(p, name)
  local id, digest = string.match(name, "^(%S+) (%S+)$")
  local q = id and quotas.load(p, id)
  if q then quotas.wake(p, q, quotas.subject(p, q, id, digest), MORE_N) end
end)

-- Whoever was refused is told that the limits are others, or that the quota is gone, and asks again; and of one that is
-- gone the windows go. Subject by subject, `left` queues in one run; answers how many are left of them.
local function look_again(p, q, id, gen, digest, left)
  local s = quotas.subject(p, q, id, digest)
  local list = redis.call("ZRANGE", s.refused, 0, left - 1)
  if #list > 0 then redis.call("ZREM", s.refused, unpack(list)) end
  for i = 1, #list do tell(p, id, gen, list[i], OPEN) end
  if #list == left then return 0 end
  if not q and s.kept > 0 then
    redis.call("UNLINK", s.window)
    timers.unreap(p, "subject", s.name)
    s.kept, s.old = 0, 0
  elseif s.kept > 0 then
    -- Its window may end at another time than reap was told.
    timers.reap(p, "subject", s.name, p.now)
  end
  if s.kept == 0 and s.active == 0 then forget(p, s) end
  return left - #list
end

-- The limits of a quota are others, or it is gone: `gen` is the number of that.
function quotas.changed(p, id, gen) timers.set(p, "quota", id .. string.format(" %.0f *", gen), p.now) end

-- "<quota> <gen> <digest of the last subject that was told>"
due.on("quota", function(p, name)
  local id, gen, done = string.match(name, "^(%S+) (%d+) (%S+)$")
  if not id then return end
  local q, left = quotas.load(p, id), WAKES_N
  local list = redis.call("ZRANGE", keys.subjects(p, id), done == "*" and "-" or "(" .. done .. "!", "+", "BYLEX", "LIMIT", 0, WAKES_N)
  for i = 1, #list do
    local digest = string.match(list[i], "^%S+")
    left = look_again(p, q, id, tonumber(gen), digest, left)
    if left == 0 then break end
    done = digest
  end
  if left == 0 or #list == WAKES_N then timers.set(p, "quota", id .. " " .. gen .. " " .. done, p.now) end
end)

-- Starts that have left the window, and what is left of a subject in which nothing is.
reap.on("subject", function(p, name, limit)
  local id, digest = string.match(name, "^(%S+) (%S+)$")
  if not id then return 1 end
  local q = quotas.load(p, id)
  local s = quotas.subject(p, q, id, digest)
  local n = trim(s, limit)
  if s.kept > 0 then
    local last = tonumber(redis.call("ZRANGE", s.window, -1, -1, "WITHSCORES")[2])
    timers.reap(p, "subject", name, s.old > 0 and p.now or last + q.window)
  elseif q then quotas.wake(p, q, s, SPARE_N)
  else
    redis.call("UNLINK", s.refused)
    rest(p, s)
  end
  return n
end)

end
