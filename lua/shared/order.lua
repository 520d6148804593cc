-- shared/order.lua -- where a ready execution stands in its queue: strict or aged.
--
--   strict   priority band, then turn.
--   aged(s)  one band. Without fairness keys: the time since which it is eligible, less s seconds per point of
--            priority. With them: turns first, which belong to the fairness key and not to the job; of the jobs of
--            that key the one that has aged most takes it (a set per key, `tenant`, holds them in that order).

local order = {}

order.BAND = 17592186044416   -- 2^44 turns in a band; 201 bands stay below 2^52
order.UNIT = 16               -- virtual time one job costs at weight 1
local BAND = order.BAND

-- The band of a job; an aged lane has one, that of priority 0.
function order.band(lane, x)
  if lane.aged then return LIMITS.PRIORITY_MAX end
  return LIMITS.PRIORITY_MAX - record.number(x, "priority")
end

-- Milliseconds: the earlier, the sooner. A record that is being created is eligible now.
function order.age(lane, x)
  return tonumber(x.eligible_at or x.created_at or lane.now) - record.number(x, "priority") * lane.aged * 1000
end

function order.score(lane, x)
  if lane.aged and not lane.keyed then return order.age(lane, x) end
  return order.band(lane, x) * BAND + record.number(x, "turn")
end

-- The queue of a job within its lane: its capability set, and behind it the admission set it waits in, if any. One
-- that owes compensations is asked for nothing.
function order.class(x)
  if x.adm and not x.pending_outcome then return (x.cap or "-") .. "." .. x.adm end
  return x.cap or "-"
end

-- Whether the lane keeps a set per fairness key beside its queues.
function order.by_tenant(lane) return lane.aged and lane.keyed end

function order.tenant(p, lane, x) return keys.tenant(p, lane.no, order.class(x), x.fair or "-") end

-- Popped turns of an aged lane, id and score in pairs: each goes to the job of its fairness key that has aged most.
-- Changes `got` in place. A job that gives its turn away takes the turn of the one that goes instead.
function order.choose(p, lane, class, got)
  local place = {}
  for i = 1, #got, 2 do place[got[i]] = i end
  for i = 1, #got, 2 do
    local id, turn = got[i], got[i + 1]
    place[id] = nil   -- from here on it is one of those in line, or goes
    local known = redis.call("HMGET", keys.core(p, id), record.short("state"), record.short("fair"))
    -- A member without a record is what an interrupted repair leaves: it has nothing to give.
    local best = known[1] and redis.call("ZPOPMIN", keys.tenant(p, lane.no, class, known[2] or "-"), 1)[1]
    if best and best ~= id then
      local later = place[best]
      if later then
        got[i], got[later] = best, id
        place[id] = later
      else
        local key = keys.queue(p, lane.no, class)
        -- While the lane is ordered anew the best may still stand in the old order: its turn there is worth nothing.
        local other = redis.call("ZSCORE", key, best) or turn
        redis.call("ZREM", key, best)
        if lane.moving then redis.call("ZREM", keys.before(p, lane.no, class), best) end
        redis.call("ZADD", key, other, id)
        if p.whole then record.load_all(p, id) end   -- it moves, and a walk relies on whoever moves a record to touch it
        redis.call("HSET", keys.core(p, id), record.short("turn"), string.format("%.0f", other % BAND))
        got[i] = best
      end
    end
  end
end
