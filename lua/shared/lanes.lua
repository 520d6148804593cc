-- shared/lanes.lua -- a lane's number, state and counters in one partition.
--
-- Lanes need no declaration: one exists from its first job. Its name is interned to a number, because
-- names are user text and numbers are short; its few words stand in the header under that number:
--   s<l> state (active when absent)   f<l> next turn   k<l> how its queues are ordered   c<l> revision of its capability sets
--   a<l> how many are running   r<l> retention (age, count, bytes)   y<l> bytes kept by what has ended, while a byte limit is set

local lanes = {}

-- How a lane is ordered, when it is not plain: "<fairness in use> <seconds of aging, 0: strict> <being ordered anew>".
-- The last word is 0, 1, or 2 where the order that is being left was an aged one with fairness keys.
local function read_order(lane, text)
  local keyed, aged, moving = string.match(text or "0 0 0", "^(%d) (%d+) (%d)$")
  lane.keyed = keyed == "1"
  lane.aged = aged ~= "0" and tonumber(aged) or nil
  lane.moving = moving ~= "0" and tonumber(moving) or nil
end

function lanes.order_changed(p, lane)
  lanes.note(p, "k" .. lane.no, (lane.keyed and "1 " or "0 ") .. (lane.aged or 0) .. " " .. (lane.moving or 0))
end

-- The names of a lane's words, made once per process: every call asks for them.
local words, words_n = {}, 0
local function words_of(number)
  local list = words[number]
  if not list then
    list = { "s" .. number, "f" .. number, "k" .. number, "c" .. number, "y" .. number, "a" .. number }
    if words_n >= LIMITS.LANES_N then words, words_n = {}, 0 end
    words[number], words_n = list, words_n + 1
  end
  return list
end

local function opened(p, name, number)
  local got = redis.call("HMGET", p.key, unpack(words_of(number)))
  local lane = { no = number, name = name, state = got[1] or "active", turn = tonumber(got[2] or "0"),
    now = p.now, keyed = false, revision = tonumber(got[4] or "0"),
    bytes = got[5] and tonumber(got[5]) or nil, active = tonumber(got[6] or "0") }
  lane.turn_was = lane.turn
  if got[3] then read_order(lane, got[3]) end
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
    -- A lane in use has two rows, and one row says the last number given. Numbers are not given again: the feed names
    -- lanes by them. A lane that is of no use any more is forgotten (retention.lua), so the bound is one of lanes in use.
    if (redis.call("HLEN", key) - 1) / 2 >= LIMITS.LANES_N then return nil end
    number = tostring(redis.call("HINCRBY", key, "#", 1))
    redis.call("HSET", key, name, number, "#" .. number, name)
    p.new_lanes = p.new_lanes or {}
    table.insert(p.new_lanes, number)
  end
  p.lane_numbers[name] = number
  -- A record of this call may have opened it by number: one table per lane and call, or counts get lost.
  local lane = p.lanes[number]
  if not lane then return opened(p, name, number) end
  lane.name = name
  return lane
end

-- The numbers of all lanes, in the order they were given; or those from a number on, the first `most` of them.
function lanes.numbers(p, from, most)
  local rows, found, out = redis.call("HKEYS", keys.lanes(p)), {}, {}
  for i = 1, #rows do
    local number = string.byte(rows[i]) == 35 and tonumber(string.sub(rows[i], 2))
    if number and number >= (from or 0) then found[#found + 1] = number end
  end
  table.sort(found)
  for i = 1, math.min(#found, most or #found) do out[i] = string.format("%.0f", found[i]) end
  return out
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
    local list = p.dirty_lanes
    if list then list[#list + 1] = lane else p.dirty_lanes = { lane } end
  end
end

function lanes.flush(p)
  local list = p.dirty_lanes
  if not list then return end
  p.dirty_lanes = nil
  for i = 1, #list do
    local lane = list[i]
    lane.dirty = nil
    local fields = words_of(lane.no)
    if lane.turn ~= lane.turn_was then lanes.note(p, fields[2], record.text(p, lane.turn)) end
    lanes.note(p, fields[6], lane.active)
  end
end

-- A header word as this call leaves it; "" when there is none.
function lanes.noted(p, field)
  local set = p.header_writes
  return set and set.at[field] and set[set.at[field]] or redis.call("HGET", p.key, field) or ""
end

-- Remember a header word of this partition; written once, when the call closes.
function lanes.note(p, field, value)
  local set = p.header_writes
  if not set then
    p.header_writes = { field, value, nil, nil, at = { [field] = 2 }, n = 2 }
    return
  end
  local at = set.at[field]
  if not at then
    at = set.n + 2
    set.n, set.at[field], set[at - 1] = at, at, field
  end
  set[at] = value
end
