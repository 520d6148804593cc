-- shared/kinds.lua -- every kind of key a partition has: its name, its type, what must be true of it and its members.
--
-- Names are made by shared/keys.lua: here it is only asked for a name with a pattern in place of each part. A key
-- of a kind that is not listed is a violation, so whoever adds a kind of key adds its row.

local kinds = {}

local UUID = "(%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x)"

local function no_record(c, key, id, member)
  check.say(c, "I3", c.p.id_prefix .. id, check.object(c.p, key) .. " has it and there is no record", "drop the member",
    check.object(c.p, key, member or id))
end

-- A member of a queue, an index or the leases: its record says that it stands here.
local function stands_here(c, key, id)
  local x = record.load(c.p, id)
  if not x then return no_record(c, key, id) end
  if not state.TABLE[x.state] or not x.lane then return end   -- told of with its record
  local place = check.place(c.p, x)
  if place ~= key then
    check.say(c, state.TABLE[x.state].leased and "I4" or key == keys.leases(c.p) and "I4" or "I2", c.p.id_prefix .. id,
      x.state .. " and also in " .. check.object(c.p, key), "drop the member", check.object(c.p, key, id))
  end
end

-- A member of an aged lane's set for one fairness key: it is ready, and of that key.
local function of_tenant(c, key, id)
  local p = c.p
  local x = record.load_all(p, id)
  if not x then return no_record(c, key, id) end
  if not state.TABLE[x.state] or not x.lane then return end
  local lane = lanes.of(p, x.lane)
  if not state.is_queued(x.state) or order.tenant(p, lane, x) ~= key or not (order.by_tenant(lane) or lane.moving == 2) then
    check.say(c, "I2", p.id_prefix .. id, x.state .. " and also in " .. check.object(p, key), "drop the member", check.object(p, key, id))
  end
end

local function blocked_for(c, key, id, reason)
  local x = record.load(c.p, id)
  if not x then return no_record(c, key, id) end
  if x.state ~= "blocked" or x.reason ~= reason then
    check.say(c, "I3", c.p.id_prefix .. id, x.state .. " and among " .. check.object(c.p, key), "drop the member", check.object(c.p, key, id))
  end
end

local function timer(c, key, member)
  local p = c.p
  local kind, id = string.match(member, "^([%w_]+):(.*)$")
  local object = check.object(p, key, member)
  if not kind or not due.handlers[kind] then
    return check.say(c, "I5", p.tag, "timer " .. member .. " is of a kind nothing handles", "", object)
  end
  if kind == "outbox" then
    if redis.call("HEXISTS", keys.outbox(p), id) == 0 then
      check.say(c, "I5", p.tag, "timer " .. member .. " has no row in the outbox", "drop the member", object)
    end
  elseif string.find(id, "^" .. UUID .. "$") then
    local x = record.load(p, id)
    if not x then return no_record(c, key, id, member) end
    if not state.TABLE[x.state] then return end
    local followed = false
    local list = check.followed()
    for i = 1, #list do followed = followed or list[i] == kind end
    if followed and not check.due(x)[kind] or kind == "unknown_task" and not (x.state == "blocked" and x.reason == "waiting_for_capable_worker") then
      check.say(c, "I5", p.id_prefix .. id, x.state .. " and timer " .. kind .. " is set", "drop the member", object)
    end
  end
end

-- A member of the set of what only frees memory. Entries are hints: they may outlive what they are about, and one of a
-- kind nobody here knows waits for a newer release.
local function reaped(c, key, member)
  local number = string.match(member, "^lane:(.*)$")
  if number and not check.is_lane(c, number) then
    check.say(c, "I18", c.p.tag, "reap entry " .. member .. " is of a lane that has no name", "drop the member", check.object(c.p, key, member))
  end
end

local function armed(c, kind, id, what)
  if not check.is_armed(c, kind, id) then
    check.say(c, "I18", c.p.tag, what .. " and nothing will ever look at it again", "look at it", check.object(c.p, keys.reap(c.p), kind .. ":" .. id))
  end
end

-- ---- the rows --------------------------------------------------------------------------------------------
-- parts: patterns of the name's parts, one capture each. of: the part that is an execution or a lane. whole(c, key,
-- part): what must be true of the key. member(c, key, name, value): of each of its members, which are gone through
-- in pages.

local function orphan(c, key, id)
  if redis.call("EXISTS", keys.core(c.p, id)) == 0 then
    check.say(c, "I18", c.p.id_prefix .. id, check.object(c.p, key) .. " is left over: its record is gone", "delete the key", check.object(c.p, key))
  end
end

local function of_lane(c, key, number)
  if not check.is_lane(c, number) then
    check.say(c, "I18", c.p.tag, check.object(c.p, key) .. " is of lane " .. number .. ", which has no name", "", check.object(c.p, key))
  end
end

-- Idle workers wait under sets that jobs require, or under sets that are remembered as nobody's.
local function park(c, key, number, cap)
  of_lane(c, key, number)
  if cap ~= "-" and redis.call("HEXISTS", keys.caps(c.p, number), cap) == 0 and not redis.call("ZSCORE", keys.strays(c.p, number), cap) then
    check.say(c, "I18", c.p.tag, check.object(c.p, key) .. " is of a set nobody remembers", "delete the key", check.object(c.p, key))
  end
end

-- The lane table names each lane both ways.
local function lane_row(c, key, name, number)
  if name == "#" then return end
  local forward = string.match(name, "^#(%d+)$")
  local back = redis.call("HGET", key, forward and number or "#" .. number)
  if forward then armed(c, "idle", forward, "lane " .. number .. " is kept") end
  if back == (forward or name) then return end
  check.say(c, "I3", c.p.tag, "lane " .. (forward or number) .. " and its name do not lead to each other", not back and "name it both ways" or "",
    check.object(c.p, key, name))
end

local function index(c, key, number, word)
  of_lane(c, key, number)
  local row = state.TABLE[word]
  if not row or row.queued or row.leased then
    check.say(c, "I18", c.p.tag, check.object(c.p, key) .. " is of a state that has no index", "", check.object(c.p, key))
  end
end

local function waiters(c, key, id)
  orphan(c, key, id)
  armed(c, "waiters", id, "waiters of " .. id .. " are kept")
end

local function tombs(c, key) armed(c, "tomb", string.sub(key, -3), "tombstones " .. string.sub(key, -3) .. " are kept") end

local function tomb(c, key, id, text)
  if string.sub(id, -3) ~= string.sub(key, -3) or not string.find(text, "^%d+ ") then
    check.say(c, "I18", c.p.id_prefix .. id, "its tombstone in " .. check.object(c.p, key) .. " cannot be read", "", check.object(c.p, key, id))
  end
end

local function slot(c, _, name) armed(c, "claim", name, "the claim memory of " .. name .. " is kept") end

local function owed(c, key, row)
  local p = c.p
  if not redis.call("ZSCORE", keys.timers(p), "outbox:" .. row) then
    check.say(c, "I5", p.tag, "row " .. row .. " of the outbox is never delivered", "set its timer", check.object(p, key, row))
  end
end

local function alive(c, key, name)
  armed(c, "workers", "all", "the roster")
  if redis.call("EXISTS", keys.worker(c.p, name)) == 0 then
    check.say(c, "I18", c.p.tag, "worker " .. name .. " is on the roster and nothing is known of it", "drop the member", check.object(c.p, key, name))
  end
end

local function worker(c, key)
  if not c.workers then
    c.workers = {}
    local all = redis.call("ZRANGE", keys.workers(c.p), 0, -1)
    for i = 1, #all do c.workers[keys.worker(c.p, all[i])] = true end
  end
  if not c.workers[key] then
    check.say(c, "I18", c.p.tag, check.object(c.p, key) .. " is of a worker that is not on the roster", "delete the key", check.object(c.p, key))
  end
end

local function nothing() end

kinds.LIST = {
  { name = "core", type = "hash", parts = { UUID }, whole = function(c, _, id)
    local x = check.record(c, id)
    if x and c.told then c.told(c, x) end
  end, costs = 6 },
  { name = "payload", type = "string", parts = { UUID }, whole = orphan },
  { name = "result", type = "string", parts = { UUID }, whole = orphan },
  { name = "detail", type = "hash", parts = { UUID }, whole = orphan },
  { name = "attempts", type = "list", parts = { UUID }, whole = orphan },
  { name = "waiters", type = "zset", parts = { UUID }, whole = waiters },
  { name = "queue", type = "zset", parts = { "(%d+)", "([%x%-]+)" }, whole = of_lane, member = stands_here },
  { name = "before", type = "zset", parts = { "(%d+)", "([%x%-]+)" }, whole = of_lane, member = stands_here },
  { name = "tenant", type = "zset", parts = { "(%d+)", "([%x%-]+)", "([%x%-]+)" }, whole = of_lane, member = of_tenant },
  { name = "index", type = "zset", parts = { "(%d+)", "(%l+)" }, whole = index, member = stands_here },
  { name = "turns", type = "zset", parts = { "(%d+)", "(%d+)" }, whole = of_lane },
  { name = "caps", type = "hash", parts = { "(%d+)" }, whole = of_lane },
  { name = "park", type = "zset", parts = { "(%d+)", "([%x%-]+)" }, whole = park },
  { name = "strays", type = "zset", parts = { "(%d+)" }, whole = of_lane },
  { name = "leases", type = "zset", parts = {}, whole = nothing, member = stands_here },
  { name = "timers", type = "zset", parts = {}, whole = nothing, member = timer },
  { name = "reap", type = "zset", parts = {}, whole = nothing, member = reaped },
  { name = "events", type = "stream", parts = {}, whole = nothing },
  { name = "lanes", type = "hash", parts = {}, whole = nothing, member = lane_row },
  { name = "policies", type = "hash", parts = {}, whole = nothing },
  { name = "marks", type = "hash", parts = {}, whole = nothing },
  { name = "settings", type = "hash", parts = {}, whole = nothing },
  { name = "claims", type = "hash", parts = {}, whole = nothing, member = slot },
  { name = "holds", type = "hash", parts = {}, whole = nothing },
  { name = "held", type = "zset", parts = {}, whole = nothing, member = function(c, key, id) blocked_for(c, key, id, "paused_by_operator") end },
  { name = "unknown", type = "zset", parts = {}, whole = nothing,
    member = function(c, key, id) blocked_for(c, key, id, "waiting_for_capable_worker") end },
  { name = "outbox", type = "hash", parts = {}, whole = nothing, member = owed },
  { name = "tombs", type = "hash", parts = { "..." }, whole = tombs, member = tomb },
  { name = "workers", type = "zset", parts = {}, whole = nothing, member = alive },
  { name = "worker", type = "string", parts = { "" }, whole = worker },
  { name = "tasks", type = "hash", parts = {}, whole = nothing },
}

-- By the letters after the partition's key, since each kind begins with others.
local by_stem
local function compile()
  by_stem = {}
  local bare = { key = "" }
  for i = 1, #kinds.LIST do
    local kind = kinds.LIST[i]
    local made = keys[kind.name](bare, unpack(kind.parts))
    -- A worker's key ends with the digest of its name: forty digits, whatever they are.
    if kind.name == "worker" then made = string.sub(made, 1, -41) .. string.rep("%x", 40) end
    kind.pattern = "^" .. made .. "$"
    local stem = string.match(made, "^:(%l+)")
    if stem then by_stem[stem] = kind end   -- a name outside its partition is one that nothing gives
  end
end

-- The kind of a key, and the parts of its name; nil when nothing gives such a name.
function kinds.of(p, key)
  if not by_stem then compile() end
  local name = string.sub(key, #p.key + 1)
  local kind = by_stem[string.match(name, "^:(%l+)") or ""]
  if not kind then return nil end
  local one, two = string.match(name, kind.pattern)
  if not one then return nil end
  return kind, one, two
end

-- What must be true of a key as such. Answers its kind when its members are to be gone through.
function kinds.check(c, key)
  local p = c.p
  local name = key == p.key and " header" or check.object(p, key)
  if redis.call("PTTL", key) ~= -1 then check.say(c, "I18", p.tag, key .. " carries a TTL", "let it stay", name) end
  if key == p.key then return nil end
  local kind, one, two = kinds.of(p, key)
  if not kind then
    check.say(c, "I18", p.tag, "nothing gives the name " .. key)
    return nil
  end
  local is = redis.call("TYPE", key).ok
  if is ~= kind.type then
    check.say(c, "I18", p.tag, check.object(p, key) .. " is a " .. is .. " and should be a " .. kind.type, "", check.object(p, key))
    return nil
  end
  kind.whole(c, key, one, two)
  return kind
end
