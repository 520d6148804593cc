-- shared/inbox.lua -- what other partitions owe to this one, applied once however often it is delivered.
--
-- Rows of one sender form a chain: each names the one before it (shared/outbox.lua). The header word "i<sender>" is the
-- row up to which all are applied; those applied ahead of their turn stand in keys.inbox, by the number before them.
-- So in the usual case, in order, a row leaves no trace but one word.
--
-- Numbers rise, also where a copy took over that had not heard of the last rows: a row that follows one long passed
-- and has a higher number than the last one begins the chain anew.
--
-- A row that was lost with a server leaves a gap that nothing fills; one that was not comes, however many are in front of
-- it: its sender tells all it owes again and again. So a gap is closed when there is much behind it and it has stood for a
-- while: the word is "<row> <since>" meanwhile.

local inbox = { handlers = {}, closers = {} }
do   -- helpers of this file

local AHEAD_N = 10000        -- so many rows of one sender ahead of their turn are no matter
local GAP_MS = 10 * 60000    -- with more, what has not come after this long was lost with a server
local STEPS_N = 2000         -- of them one call takes out when what was missing has come: some 10 ms

-- Called while the library loads, with a kind and what to do: handler(p, body, from). A kind of which several chapters
-- have some is named with the first word of the body: "settle b". A handler looks first and writes after, as a
-- function does, and takes a body that it cannot read for nothing at all.
function inbox.on(kind, handler) inbox.handlers[kind] = handler end

function inbox.handler(kind, body)
  return inbox.handlers[kind .. " " .. string.match(body, "^%S*")] or inbox.handlers[kind]
end

-- The same, for what is done once after all rows of a call: closer(p).
function inbox.after(closer) inbox.closers[#inbox.closers + 1] = closer end

-- Tell another partition something it may as well never hear: it goes with the answer of this call (ff_deliver,
-- ff_tick) and is kept nowhere.
function inbox.wake(p, target, kind, body)
  p.owed = p.owed or {}
  table.insert(p.owed, { "", target, kind, body })
end

local function word(source) return "i" .. source end

-- Where a sender's rows stand.
function inbox.open(p, source)
  local low, since = string.match(lanes.noted(p, word(source)), "^(%d+) ?(%d*)$")
  return { source = source, key = keys.inbox(p, source), low = tonumber(low or "0"), since = tonumber(since or ""), now = p.now,
    steps = STEPS_N, ahead = redis.call("ZCARD", keys.inbox(p, source)) }
end

function inbox.is_known(box, number)
  if number <= box.low then return true end
  return box.ahead > 0 and redis.call("ZSCORE", box.key, string.format("%.0f", number)) ~= false
end

-- The chain goes on with those that were ahead and follow directly. Where there are very many, later calls go on with it.
local function advance(box)
  while box.ahead > 0 and box.steps > 0 do
    box.steps = box.steps - 1
    local low = string.format("%.0f", box.low)
    local follower = redis.call("ZRANGE", box.key, "-inf", low, "BYSCORE", "LIMIT", 0, 1)[1]
    if not follower then return end
    redis.call("ZREM", box.key, follower)
    box.ahead, box.low = box.ahead - 1, math.max(box.low, tonumber(follower))
  end
end

-- A row has been applied.
function inbox.applied(box, before, number)
  if before > box.low then
    redis.call("ZADD", box.key, string.format("%.0f", before), string.format("%.0f", number))
    box.ahead = box.ahead + 1
    if box.ahead <= AHEAD_N then return end
    box.since = box.since or box.now
    if box.now - box.since < GAP_MS then return end
    box.low = tonumber(redis.call("ZRANGE", box.key, 0, 0, "WITHSCORES")[2])
  else
    box.low = number
  end
  advance(box)
end

function inbox.close(p, box)
  advance(box)
  local low = string.format("%.0f", box.low)
  if box.ahead > AHEAD_N and box.since then low = low .. string.format(" %.0f", box.since) end
  if low ~= "0" and lanes.noted(p, word(box.source)) ~= low then lanes.note(p, word(box.source), low) end
end

end
