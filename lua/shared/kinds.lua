-- shared/kinds.lua -- every kind of key a partition has: its name, its type, what must be true of it and its members.
--
-- Names are made by shared/keys.lua: here it is only asked for a name with a pattern in place of each part. A key
-- of a kind that is not listed is a violation, so whoever adds a kind of key adds its row.

local kinds = {}
do   -- helpers of this file; a chunk holds 200 locals

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

-- A set that no claim looks at is halted for a reason, which knows where it stands and ends at an instant.
local function shut(c, key, adm)
  local p = c.p
  local number, cap = string.match(key, ":(%d+):([%x%-]+)$")
  local row = admission.read_halt(redis.call("HGET", keys.halts(p), adm) or nil)
  if not row or not string.find("," .. row.places .. ",", "," .. number .. ":" .. cap .. ",", 1, true) then
    check.say(c, "I2", p.tag, "admission set " .. adm .. " is kept from starting and nothing says why", "let it start", check.object(p, key, adm))
  end
end

local function halt(c, key, adm, text)
  local p = c.p
  if string.sub(adm, 1, 2) == "o:" then
    local uuid = string.sub(adm, 3)
    if not check.is_armed(c, "halts", uuid) then
      check.say(c, "I18", p.tag, "the release heard of " .. uuid .. " is kept and nothing will ever look at it again", "look at it",
        check.object(p, keys.reap(p), "halts:" .. uuid))
    end
    return
  end
  if not admission.read_halt(text) then return check.say(c, "I2", p.tag, "halt " .. adm .. " cannot be read", "drop the member", check.object(p, key, adm)) end
  if not redis.call("ZSCORE", keys.timers(p), "halt:" .. adm) then
    check.say(c, "I5", p.tag, "the halt of " .. adm .. " never ends", "set its timer", check.object(p, key, adm))
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
  if flow_check.timer(c, kind, id, object) or budget_check.timer(c, kind, id, object) or quota_check.timer(c, kind, id, object) then return end
  if kind == "halt" then
    if redis.call("HEXISTS", keys.halts(p), id) == 0 then
      check.say(c, "I5", p.tag, "timer " .. member .. " has no halt", "drop the member", object)
    end
  elseif kind == "outbox" then
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
    if kind == "waitpoint" and (not x.waitpoints or state.is_terminal(x.state)) or followed and not check.due(x)[kind] or kind == "unknown_task" and not (x.state == "blocked" and x.reason == "waiting_for_capable_worker") then
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
  -- Those who await a flow stand in a key of the same kind.
  if redis.call("EXISTS", keys.core(c.p, id), keys.flow(c.p, id)) == 0 then
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
  if forward then
    armed(c, "idle", forward, "lane " .. number .. " is kept")
    local lane = lanes.of(c.p, forward)
    local there = queue.count_classes(c.p, lane)
    if there ~= lane.classed then
      check.say(c, "I2", c.p.tag, "lane " .. number .. " counts " .. lane.classed .. " jobs in queues of admission sets, there are " .. there,
        "count again", " classed " .. forward)
    end
  end
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

-- A stream of an attempt is one that the execution knows of, or nobody would ever remove it.
local function of_attempt(c, key, id, attempt_no)
  if redis.call("EXISTS", keys.core(c.p, id)) == 0 then return orphan(c, key, id) end
  local list = stream.attempts(c.p, id)
  for i = 1, #list do if list[i][1] == attempt_no then return end end
  check.say(c, "I18", c.p.id_prefix .. id, check.object(c.p, key) .. " is of an attempt that is not known to have frames", "delete the key", check.object(c.p, key))
end

-- Recorded steps: each can be read and is the one its key leads to; numbers have no gaps, and the count is right.
local SUMMED_N = 1000   -- of longer ones the bytes are not added up

local function journal_size(c, key)
  c.journals = c.journals or {}
  if c.journals[key] == nil then
    local count, bytes = string.match(redis.call("HGET", key, "n") or "", "^(%d+) (%d+)$")
    c.journals[key] = count and { tonumber(count), tonumber(bytes) } or false
  end
  return c.journals[key]
end

local function steps(c, key, id)
  orphan(c, key, id)
  local size = journal_size(c, key)
  if not size then check.say(c, "I22", c.p.id_prefix .. id, "nobody has counted its recorded steps", "", check.object(c.p, key)) end
end

local function recorded(c, key, field, value)
  local p, id = c.p, string.sub(key, -36)
  local size = journal_size(c, key)
  local function say(detail, remedy) check.say(c, "I22", p.id_prefix .. id, detail, remedy, check.object(p, key, field)) end
  if not size then return end
  if field == "n" then
    local there = redis.call("HLEN", key)
    if there ~= 2 * size[1] + 1 then return say("counts " .. size[1] .. " recorded steps in " .. there .. " fields") end
    if size[1] > SUMMED_N then return end
    local sum = 0
    for seq = 1, size[1] do sum = sum + redis.call("HSTRLEN", key, seq) end
    if sum ~= size[2] then say("counts " .. size[2] .. " bytes of recorded steps, there are " .. sum, "count again") end
  elseif string.sub(field, 1, 1) == "k" then
    local entry = redis.call("HGET", key, value)
    if not entry or string.sub(field, 2) ~= string.match(entry, "^%S*") then say("step " .. field .. " is to be found under " .. value .. " and is not") end
  else
    local name, kind, status = journal.unpack(value)
    if not name or not journal.KINDS[kind] or not journal.STATUSES[status] then return say("recorded step " .. field .. " cannot be read") end
    if redis.call("HGET", key, "k" .. name) ~= field then say("no key leads to recorded step " .. field) end
    if not string.find(field, "^%d+$") or tonumber(field) < 1 or tonumber(field) > size[1] then say("recorded step " .. field .. " is not one of " .. size[1]) end
  end
end

-- Waitpoints: how many are open is counted right, their timer is set in time, and what has ended has none open.
local function places(c, key, id)
  local p = c.p
  local x = record.load(p, id)
  if not x then return orphan(c, key, id) end
  if not state.TABLE[x.state] then return end
  local full, object = p.id_prefix .. id, check.object(p, key)
  if not x.waitpoints then return end   -- told of with its record
  local all, open, next_at = waitpoints.all(p, x)
  local there, by_kid, kids_seen = 0, {}, {}
  for i = 1, #all do
    local row = all[i][2]
    if row.state ~= "closed" then
      there = there + 1
      if row.kid and not by_kid[row.kid] then kids_seen[#kids_seen + 1] = row.kid end
      if row.kid then by_kid[row.kid] = (by_kid[row.kid] or 0) + 1 end
      if row.state == "pending" and row.expires and (next_at == 0 or next_at > row.expires) then
        check.say(c, "I15", full, "waitpoint " .. all[i][1] .. " expires and no timer closes it", "", object)
      end
    end
  end
  for i = 1, #kids_seen do c.kids[#c.kids + 1] = { id, kids_seen[i], by_kid[kids_seen[i]] } end
  if open ~= there then check.say(c, "I15", full, "counts " .. open .. " open waitpoints, there are " .. there, "", object) end
  if there > 0 and state.is_terminal(x.state) then check.say(c, "I15", full, "has ended and waitpoints are open", "", object) end
  local armed_at = tonumber(redis.call("ZSCORE", keys.timers(p), "waitpoint:" .. id) or "0")
  if armed_at ~= next_at then check.say(c, "I5", full, string.format("a waitpoint closes at %.0f and its timer is %.0f", next_at, armed_at), "", object) end
end

local function place(c, key, id, text)
  if id == "m" then return end
  local row = waitpoints.is_id(id) and waitpoints.read(text)
  if not row or not (row.state == "pending" or row.state == "active" or row.state == "closed") or (row.index ~= nil) ~= (row.state == "active") then
    check.say(c, "I15", c.p.id_prefix .. string.sub(key, -36), "waitpoint " .. string.sub(id, 1, 40) .. " cannot be read", "", check.object(c.p, key, id))
  end
end

-- Signals: what is kept is counted right, for the execution and for each of its waitpoints.
local function messages(c, key, id)
  local p = c.p
  local x = record.load(p, id)
  if not x then return orphan(c, key, id) end
  if not x.waitpoints then
    if redis.call("EXISTS", keys.waitpoints(p, id)) == 0 then check.say(c, "I15", p.id_prefix .. id, "has signals and no waitpoint", "", check.object(p, key)) end
    return
  end
  local t, fields = waitpoints.tally(p, x), redis.call("HLEN", key) <= LIMITS.PAGE_MAX_N and redis.call("HKEYS", key) or {}
  local kept, bytes, sum = 0, 0, 0
  for i = 1, #fields do
    local kind = string.sub(fields[i], 1, 1)
    if kind == "s" then kept, bytes = kept + 1, bytes + redis.call("HSTRLEN", key, fields[i])
    elseif kind == "c" then sum = sum + (tonumber(string.match(redis.call("HGET", key, fields[i]), " (%d+)$")) or 0) end
  end
  if #fields > 0 and (kept ~= t.kept or bytes ~= t.bytes or sum ~= kept) then
    check.say(c, "I15", p.id_prefix .. id, "counts " .. t.kept .. " signals of " .. t.bytes .. " bytes, there are " .. kept .. " of " .. bytes
      .. ", its waitpoints count " .. sum, "", check.object(p, key))
  end
end

local function message(c, key, field, text)
  local kind, rest = string.sub(field, 1, 1), string.sub(field, 2)
  local sound
  if kind == "s" then
    local total = tonumber(string.match(redis.call("HGET", key, "n") or "", "^(%d+)"))
    sound = string.find(rest, "^%d+$") and total and tonumber(rest) <= total and waitpoints.unpack(text, 11) ~= nil
  elseif kind == "k" then sound = #rest == 40 and string.find(text, "^%d+ %S+ %S+ %d+$")
  elseif kind == "c" then sound = waitpoints.is_id(rest) and string.find(text, "^%d+ [1-9]%d*$")
  else sound = field == "n" and string.find(text, "^%d+ %d+ %d+$") end
  if not sound then
    check.say(c, "I15", c.p.id_prefix .. string.sub(key, -36), "signal " .. string.sub(field, 1, 45) .. " cannot be read", "", check.object(c.p, key, field))
  end
end

local function kid(c, key, field, text)
  local kind = string.sub(field, 1, 1)
  local sound
  if field == "current" then sound = string.match(redis.call("HGET", key, "k" .. text) or "", " 0$") ~= nil
  elseif kind == "k" then sound = string.find(text, "^%x+ %d+$") and ((string.find(text, " 0$") ~= nil) == (redis.call("HGET", key, "current") == string.sub(field, 2)))
  else sound = string.find(text, "^%d+$") and (kind == "n" or field == "opened") end
  if not sound then check.say(c, "I15", c.p.tag, "kid row " .. string.sub(field, 1, 40) .. " does not fit the others", "", check.object(c.p, key, field)) end
end

-- A schedule: both its keys are there, it is on the list, and its place is the one its state says.
function kinds.schedule(c, key, id)
  local p = c.p
  local s = schedules.load(p, id)
  local function say(detail) check.say(c, "I18", p.id_prefix .. id, detail, "look at it", check.object(p, keys.reap(p), "schedule:" .. id)) end
  if not s or not s.due or not schedules.STATES[s.state] then
    return check.say(c, "I18", p.id_prefix .. id, "a schedule that cannot be read", "delete the key", check.object(p, key))
  end
  if redis.call("EXISTS", keys.schedule_text(p, id)) == 0 then say("nothing says what it submits") end
  if not redis.call("ZSCORE", keys.schedule_ids(p), id) then say("is not on the list of schedules") end
  if s.state == "active" and not redis.call("ZSCORE", keys.schedules(p), id) then say("is active and never due") end
  if s.state == "ended" then armed(c, "schedule", id, "schedule " .. id .. " has ended") end
end

function kinds.scheduled(c, key, id)
  local s = schedules.load(c.p, id)
  if not s then return no_record(c, key, id) end
  if key == keys.schedules(c.p) and s.state ~= "active" then
    check.say(c, "I5", c.p.id_prefix .. id, s.state .. " and still due", "drop the member", check.object(c.p, key, id))
  end
end

function kinds.schedule_text(c, key, id)
  if redis.call("EXISTS", keys.schedule(c.p, id)) == 0 then
    check.say(c, "I18", c.p.id_prefix .. id, check.object(c.p, key) .. " is left over: its schedule is gone", "delete the key", check.object(c.p, key))
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
  { name = "journal", type = "hash", parts = { UUID }, whole = steps, member = recorded },
  { name = "stream", type = "stream", parts = { UUID, "(%d+)" }, whole = of_attempt },
  { name = "live", type = "stream", parts = { UUID, "(%d+)" }, whole = of_attempt },
  { name = "frames", type = "hash", parts = { UUID }, whole = orphan },
  { name = "summary", type = "hash", parts = { UUID }, whole = orphan },
  { name = "suspension", type = "hash", parts = { UUID }, whole = orphan },
  { name = "waitpoints", type = "hash", parts = { UUID }, whole = places, member = place, costs = 4 },
  { name = "signals", type = "hash", parts = { UUID }, whole = messages, member = message },
  { name = "kids", type = "hash", parts = {}, whole = nothing, member = kid },
  { name = "flow", type = "hash", parts = { UUID }, whole = flow_check.flow, costs = 6 },
  { name = "flow_text", type = "hash", parts = { UUID }, whole = flow_check.of_flow },
  { name = "members", type = "zset", parts = { UUID }, whole = flow_check.of_flow, member = flow_check.member },
  { name = "edges", type = "hash", parts = { UUID }, whole = flow_check.of_flow, member = flow_check.named },
  { name = "incoming", type = "hash", parts = { UUID }, whole = flow_check.incoming, member = flow_check.row, costs = 4 },
  { name = "outgoing", type = "list", parts = { UUID }, whole = flow_check.outgoing, member = flow_check.entry },
  { name = "flows", type = "zset", parts = {}, whole = nothing, member = flow_check.listed },
  { name = "queue", type = "zset", parts = { "(%d+)", "([%x%-%.]+)" }, whole = of_lane, member = stands_here },
  { name = "before", type = "zset", parts = { "(%d+)", "([%x%-%.]+)" }, whole = of_lane, member = stands_here },
  { name = "tenant", type = "zset", parts = { "(%d+)", "([%x%-%.]+)", "([%x%-]+)" }, whole = of_lane, member = of_tenant },
  { name = "ring", type = "zset", parts = { "(%d+)", "([%x%-]+)" }, whole = of_lane },
  { name = "shut", type = "zset", parts = { "(%d+)", "([%x%-]+)" }, whole = of_lane, member = shut },
  { name = "aside", type = "zset", parts = { "(%d+)" }, whole = of_lane },
  { name = "weights", type = "hash", parts = { "(%d+)" }, whole = of_lane },
  { name = "halts", type = "hash", parts = {}, whole = function() end, member = halt },
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
  { name = "tombs", type = "hash", parts = { "..." }, whole = tombs, member = tomb },
  { name = "workers", type = "zset", parts = {}, whole = nothing, member = alive },
  { name = "worker", type = "string", parts = { "" }, whole = worker },
  { name = "tasks", type = "hash", parts = {}, whole = nothing },
  { name = "quota", type = "hash", parts = { UUID }, whole = quota_check.quota },
  { name = "quotas", type = "zset", parts = {}, whole = nothing, member = quota_check.on_list },
  { name = "window", type = "zset", parts = { UUID, "([%x%-]+)" }, whole = quota_check.window, member = quota_check.started },
  { name = "running", type = "hash", parts = { UUID, "([%x%-]+)" }, whole = quota_check.running, member = quota_check.placed },
  { name = "refused", type = "zset", parts = { UUID, "([%x%-]+)" }, whole = quota_check.refused, member = quota_check.waits },
  { name = "subjects", type = "zset", parts = { UUID }, whole = nothing, member = quota_check.subject },
  { name = "unique", type = "hash", parts = { UUID }, whole = quota_check.unique, costs = 2 },
  { name = "schedule", type = "hash", parts = { UUID }, whole = kinds.schedule, costs = 2 },
  { name = "schedule_text", type = "string", parts = { UUID }, whole = kinds.schedule_text },
  { name = "schedules", type = "zset", parts = {}, whole = nothing, member = kinds.scheduled },
  { name = "schedule_ids", type = "zset", parts = {}, whole = nothing, member = kinds.scheduled },
}

for i = 1, #budget_check.ROWS do kinds.LIST[#kinds.LIST + 1] = budget_check.ROWS[i] end

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

end
