-- shared/lanes.lua -- a lane's number, state and counters in one partition.
--
-- Lanes need no declaration: one exists from its first job. Its name is interned to a number, because
-- names are user text and numbers are short; its few words stand in the header under that number:
--   s<l> state (active when absent), and behind it how many jobs and bytes may stand in line, where that is limited
--   f<l> next turn   k<l> how its queues are ordered   c<l> revision of its capability sets
--   a<l> how many are running   r<l> retention (age, count, bytes)   y<l> bytes kept by what has ended, while a byte limit is set
--   m<l> how many ready jobs wait in queues of admission sets
--   x<l> the quota its jobs take a place of   u<l> 1: its fairness keys have weights
--   z<l> payload bytes of jobs that have not ended, once a limit of them was set

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
    list = { "s" .. number, "f" .. number, "k" .. number, "c" .. number, "y" .. number, "a" .. number,
      "m" .. number, "x" .. number }
    if words_n >= LIMITS.LANES_N then words, words_n = {}, 0 end
    words[number], words_n = list, words_n + 1
  end
  return list
end

-- The first word of a lane: its state, and how much may stand in line here (0: no limit of that kind).
local function read_state(text)
  local word, count, bytes = string.match(text, "^(%a+) (%d+) (%d+)$")
  if not word then return text end
  return word, { count = tonumber(count), bytes = tonumber(bytes) }
end

function lanes.state_text(word, count, bytes)
  if count == 0 and bytes == 0 then return word end
  return word .. " " .. string.format("%.0f %.0f", count, bytes)
end

local function opened(p, name, number)
  local got = redis.call("HMGET", p.key, unpack(words_of(number)))
  local word, most
  if got[1] then word, most = read_state(got[1]) end
  local lane = { no = number, name = name, state = word or "active", most = most, turn = tonumber(got[2] or "0"),
    now = p.now, keyed = false, revision = tonumber(got[4] or "0"),
    bytes = got[5] and tonumber(got[5]) or nil, active = tonumber(got[6] or "0"),
    classed = tonumber(got[7] or "0"), quota = got[8] and got[8] ~= "" and got[8] or nil }
  lane.classed_was = lane.classed
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

-- Jobs that are ready. What this call has collected and not yet written is not among them.
function lanes.ready(p, lane)
  local no = lane.no
  local n = lane.classed
  local sets = lane.revision > 0 and redis.call("HKEYS", keys.caps(p, no)) or {}
  sets[#sets + 1] = "-"
  for i = 1, #sets do
    n = n + redis.call("ZCARD", keys.queue(p, no, sets[i]))
    if lane.moving then n = n + redis.call("ZCARD", keys.before(p, no, sets[i])) end
  end
  return n
end

-- How much more this lane takes: jobs and payload bytes. One that holds no bytes takes one job, however large.
local function room_of(p, lane)
  local most, room = lane.most, { n = math.huge, bytes = math.huge }
  if most.count > 0 then
    room.n = most.count - lanes.ready(p, lane) - redis.call("ZCARD", keys.index(p, lane.no, "delayed"))
      - redis.call("ZCARD", keys.index(p, lane.no, "blocked"))
  end
  if most.bytes > 0 then
    local held = tonumber(lanes.noted(p, "z" .. lane.no)) or 0
    room.bytes = held > 0 and most.bytes - held or math.huge
    room.after = most.bytes - held
  end
  return room
end

-- Back-pressure: whether so many more jobs, with so many bytes of payload, would be too much for the lane. A refusal,
-- or nil: then they count as taken, for the rest of this call. A lane without limits costs the look at one field.
function lanes.full(p, lane, count, bytes)
  if not lane.most then return nil end
  local room = lane.room
  if not room then
    room = room_of(p, lane)
    lane.room = room
  end
  if count > room.n or bytes > room.bytes then return reply.reject("lane_full", LIMITS.FULL_RETRY_MS) end
  room.n = room.n - count
  if room.after then
    room.after = room.after - bytes
    room.bytes = room.after
  end
end

-- Count a job's payload until the job ends. What its record has to say of that (`held_bytes`), or nil.
function lanes.hold_bytes(p, lane, bytes)
  local most = lane.most
  if not most or most.bytes == 0 or bytes == 0 then return nil end
  lanes.note(p, "z" .. lane.no, string.format("%.0f", (tonumber(lanes.noted(p, "z" .. lane.no)) or 0) + bytes))
  return string.format("%.0f", bytes)
end

function lanes.drop_bytes(p, x)
  local field = "z" .. x.lane
  lanes.note(p, field, string.format("%.0f", math.max(0, (tonumber(lanes.noted(p, field)) or 0) - tonumber(x.held_bytes))))
end

-- The quota every job of the lane takes a place of; "": none. Whether that is another than before.
function lanes.set_quota(p, lane, id)
  if (lane.quota or "") == id then return false end
  lanes.note(p, "x" .. lane.no, id)
  lane.quota = id ~= "" and id or nil
  return true
end

-- What a fairness key's jobs weigh: one of weight 2 gets two turns where others get one. Lanes without weights have no
-- word `u<l>`, and no key is asked for.
function lanes.weight(p, lane, fair)
  local known = lane.weights
  if known == nil then
    known = lanes.noted(p, "u" .. lane.no) == "1" and {}
    lane.weights = known
  end
  if not known then return 1 end
  local weight = known[fair]
  if not weight then
    weight = tonumber(redis.call("HGET", keys.weights(p, lane.no), fair)) or 1
    known[fair] = weight
  end
  return weight
end

-- Weights by fairness key, key and weight in turn, instead of those there were. Turns that were given stay as they are.
function lanes.set_weights(p, lane, flat)
  local key = keys.weights(p, lane.no)
  redis.call("UNLINK", key)
  for i = 1, #flat, 2 do redis.call("HSET", key, string.sub(redis.sha1hex(flat[i]), 1, 12), flat[i + 1]) end
  lanes.note(p, "u" .. lane.no, #flat > 0 and "1" or "")
  lane.weights = nil
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
    if lane.classed ~= lane.classed_was then
      lanes.note(p, fields[7], lane.classed)
      lane.classed_was = lane.classed   -- a tick writes twice
    end
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
