-- shared/lanes.lua -- a lane's number, state and counters in one partition.
--
-- Lanes need no declaration: one exists from its first job. Its name is interned to a number, because
-- names are user text and numbers are short; its few words stand in the header under that number:
--   s<l> state (active when absent)   f<l> next turn   k<l> fairness in use   c<l> revision of its capability sets
--   a<l> how many are running   r<l> retention (age, count, bytes)   y<l> bytes kept by what has ended, while a byte limit is set

local lanes = {}

local function opened(p, name, number)
  local got = redis.call("HMGET", p.key, "s" .. number, "f" .. number, "k" .. number, "c" .. number, "y" .. number, "a" .. number)
  local lane = { no = number, name = name, state = got[1] or "active", turn = tonumber(got[2] or "0"),
    keyed = got[3] and true or false, revision = tonumber(got[4] or "0"),
    bytes = got[5] and tonumber(got[5]) or nil, active = tonumber(got[6] or "0") }
  p.lanes[number] = lane
  return lane
end

-- The lane of a name; `create` interns it. nil when unknown (or, creating, when the table is full).
function lanes.named(p, name, create)
  local number = p.lane_numbers[name]
  if number then return p.lanes[number] end
  if string.sub(name, 1, 1) == "#" then return nil end   -- the table's own rows
  local key = keys.lanes(p)
  number = redis.call("HGET", key, name)
  if not number then
    if not create then return nil end
    local n = tonumber(redis.call("HGET", key, "#") or "0") + 1
    if n > LIMITS.LANES_N then return nil end
    number = tostring(n)
    redis.call("HSET", key, name, number, "#", n, "#" .. number, name)
  end
  p.lane_numbers[name] = number
  -- A record of this call may have opened it by number: one table per lane and call, or counts get lost.
  local lane = p.lanes[number]
  if not lane then return opened(p, name, number) end
  lane.name = name
  return lane
end

-- The lane of a record.
function lanes.of(p, number)
  return p.lanes[number] or opened(p, nil, number)
end

function lanes.name(p, number)
  local lane = lanes.of(p, number)
  if not lane.name then lane.name = redis.call("HGET", keys.lanes(p), "#" .. number) or "" end
  return lane.name
end

-- A lane's turn or running count has changed; written once, when the call closes.
function lanes.changed(p, lane)
  if not lane.dirty then
    lane.dirty = true
    p.dirty_lanes = p.dirty_lanes or {}
    table.insert(p.dirty_lanes, lane)
  end
end

function lanes.flush(p)
  local list = p.dirty_lanes
  if not list then return end
  p.dirty_lanes = nil
  for i = 1, #list do
    local lane = list[i]
    lane.dirty = nil
    lanes.note(p, "f" .. lane.no, record.text(p, lane.turn))
    lanes.note(p, "a" .. lane.no, lane.active)
  end
end

-- Remember a header word of this partition; written once, when the call closes.
function lanes.note(p, field, value)
  local set = p.header_writes
  if not set then
    set = { at = {}, order = {} }
    p.header_writes = set
  end
  if set.at[field] == nil then set.order[#set.order + 1] = field end
  set.at[field] = value
end
