-- shared/timers.lua -- what is due when. Three ZSETs per partition, each with its own limit per tick, so that
-- neither a million delays nor a backlog of purges holds up a recovery.
--
--   leases     running executions by the end of their lease (member = uuid); also their index
--   timers     delay deadline cancel_grace grant release unknown_task ... (member = kind:uuid)
--   reap       retention, tombstones, claim memory, waiters
--
-- Writes are collected in p and leave in one ZADD and one ZREM per call.

local timers = {}

-- The last word on a member wins; members stand in the set in the order they came, words in `at`.
function timers.note(set, member, value)
  if set.at[member] == nil then
    local n = set.n + 1
    set.n = n
    set[n] = member
  end
  set.at[member] = value
end

-- A set with its first member. Tables made with what they hold need not grow, which costs more than filling them.
function timers.begun(member, value) return { member, at = { [member] = value }, n = 1 } end

local function note(p, which, member, due)
  local set = p[which]
  if set then timers.note(set, member, due) else p[which] = timers.begun(member, due) end
end

-- A ticker has promised to look again by p.ticker_until: what is due before that must wake it.
local function soon(p, due)
  if due < p.ticker_until and (not p.soonest or due < p.soonest) then p.soonest = due end
end

function timers.set(p, kind, id, due)
  note(p, "timer_writes", kind .. ":" .. id, due)
  soon(p, due)
end

-- A lease begins, moves or ends: the index of running executions is the lease timer.
function timers.lease(p, x)
  note(p, "lease_writes", x.id, x.at)
  soon(p, tonumber(x.at))
  local lane = lanes.of(p, x.lane)
  lane.active = lane.active + 1
  lanes.changed(p, lane)
end

function timers.extend(p, x)
  note(p, "lease_writes", x.id, x.at)
  soon(p, tonumber(x.at))
end

function timers.unlease(p, x)
  note(p, "lease_writes", x.id, false)
  local lane = lanes.of(p, x.lane)
  lane.active = lane.active - 1
  lanes.changed(p, lane)
end
function timers.clear(p, kind, id) note(p, "timer_writes", kind .. ":" .. id, false) end
function timers.reap(p, kind, id, due) note(p, "reap_writes", kind .. ":" .. id, due) end
-- The same, unless it is due earlier already. An entry this call has taken out (a reap handler at work) is
-- set again: NX alone would see it in the store, and the flush would then remove it for good.
function timers.reap_first(p, kind, id, due)
  local member = kind .. ":" .. id
  local noted = p.reap_writes and p.reap_writes.at[member]
  if noted == nil then redis.call("ZADD", keys.reap(p), "NX", due, member)
  elseif not noted or noted > due then timers.reap(p, kind, id, due) end
end
function timers.unreap(p, kind, id) note(p, "reap_writes", kind .. ":" .. id, false) end

-- Write such a set: also used for indexes.
function timers.write(key, set)
  local add, gone, added, removed = nil, nil, 0, 0
  for i = 1, set.n do
    local member = set[i]
    local due = set.at[member]
    if due then
      if add then add[added + 1], add[added + 2] = due, member else add = { due, member } end
      added = added + 2
    else
      removed = removed + 1
      if gone then gone[removed] = member else gone = { member } end
    end
  end
  if removed > 0 then redis.call("ZREM", key, unpack(gone)) end
  if added > 0 then redis.call("ZADD", key, unpack(add)) end
end

-- Due members of a set, oldest first, at most `limit`: member, score, member, score.
function timers.due(key, now, limit)
  return redis.call("ZRANGE", key, "-inf", now, "BYSCORE", "LIMIT", 0, limit, "WITHSCORES")
end

-- Write what was collected, and wake the ticker where something is due before it would look by itself.
function timers.flush(p)
  local set = p.lease_writes
  if set then
    p.lease_writes = nil
    timers.write(keys.leases(p), set)
  end
  set = p.timer_writes
  if set then
    p.timer_writes = nil
    timers.write(keys.timers(p), set)
  end
  if p.soonest then
    redis.call("SPUBLISH", keys.ticker_channel(p), string.format("%.0f", p.soonest))
    p.soonest = nil
  end
  set = p.reap_writes
  if set then
    p.reap_writes = nil
    timers.write(keys.reap(p), set)
  end
end
