-- shared/flow_check.lua -- what must be true of flows, their members and the edges between them (I11, I12).
--
-- As in shared/check.lua the record is the truth, and each relation is looked at from both ends: a member and its place
-- among the flow's, an edge in its downstream's rows and in its upstream's list, what goes on later and its timer. What a
-- flow counts is counted again where it has few members; of a larger one the caller adds up what pages tell of members.

do -- a chunk may hold 200 locals

local COUNTED_N = 200   -- members of a flow that one call counts
local ROWS_N = 500      -- rows of a group that one call counts
local LISTED_N = 1000   -- of upstreams with more edges only that each of these stands at its other end
local DUE_N = 1000      -- timers looked through for one whose name is not known

local COUNTERS = { "queued", "delayed", "blocked", "active", "suspended", "completed", "failed", "cancelled", "expired", "skipped" }
local OTHERS = { "created_at", "moved_at", "revision", "edges", "members", "bytes", "chunk", "started_at", "resolving", "failures", "cancels", "broken",
  "ended_at", "cancelled_at", "cancel_at" }
local STATES = { staging = true, live = true, ended = true, purging = true }
local QUEUED = { ready = true, granted = true, reclaimable = true, revoked = true }

-- The counter a member's state is counted in.
function flow_check.counter(word) return QUEUED[word] and "queued" or word end

local function say_of(c, id, object)
  return function(invariant, detail, remedy) check.say(c, invariant, c.p.id_prefix .. id, detail, remedy, object) end
end

-- Whether publishing a graph is under way: its timer's name also says from where on. One that many timers hide counts as there.
local function is_publishing(c, fid)
  if not c.publishing then
    c.publishing = {}
    local due_now = redis.call("ZRANGE", keys.timers(c.p), "-inf", c.p.now, "BYSCORE", "LIMIT", 0, DUE_N)
    c.publishing_all = #due_now == DUE_N
    for i = 1, #due_now do
      local id = string.match(due_now[i], "^publish:(%S+) ")
      if id then c.publishing[id] = true end
    end
  end
  return c.publishing_all or c.publishing[fid]
end

-- ---- a flow ------------------------------------------------------------------------------------------

-- What its members make of its counters: counter -> number. One read for each member.
function flow_check.recount(p, fid, most)
  local ids = redis.call("ZRANGE", keys.members(p, fid), 0, most)
  if #ids > most then return nil end
  local there = { members = #ids, resolving = 0, failures = 0, cancels = 0, broken = 0, edges = 0 }
  for i = 1, #COUNTERS do there[COUNTERS[i]] = 0 end
  for i = 1, #ids do
    local r = redis.call("HMGET", keys.core(p, ids[i]), record.short("state"), record.short("resolving"), record.short("reopening"),
      record.short("unhandled"), record.short("deps"), record.short("outs"))
    local row = r[1] and state.TABLE[r[1]]
    if row then
      local counter = flow_check.counter(r[1])
      there[counter] = there[counter] + 1
      if row.outcome and (r[2] or r[3]) then there.resolving = there.resolving + 1 end
      if r[4] then
        local also = r[1] == "cancelled" and "cancels" or "failures"
        there[also] = there[also] + 1
      end
      local g = r[5] and graph.read_group(redis.call("HGET", keys.incoming(p, ids[i]), "g"))
      if g and g.state == "i" and g.policy ~= "A" then
        if g.failed > 0 then there.broken = there.broken + 1 elseif g.cancelled > 0 then there.cancels = there.cancels + 1 end
      end
      if r[6] then there.edges = there.edges + redis.call("LLEN", keys.outgoing(p, ids[i])) end
    end
  end
  return there, #ids
end

local COUNTED = { "resolving", "failures", "cancels", "broken", "edges" }

local function counts(c, f, say)
  local listed = redis.call("ZCARD", keys.members(c.p, f.id))
  if f.members ~= listed then return say("I12", "counts " .. f.members .. " members, there are " .. listed, "count again") end
  if flows.alive(f) + flows.over(f) ~= f.members then
    return say("I12", "counts " .. flows.alive(f) .. " members that live and " .. flows.over(f) .. " that have ended, there are " .. listed, "count again")
  end
  if listed > COUNTED_N then
    local flat = {}
    for i = 1, #COUNTERS do flat[2 * i - 1], flat[2 * i] = COUNTERS[i], f[COUNTERS[i]] end
    flat[#flat + 1], flat[#flat + 2] = "resolving", f.resolving
    c.flow_counts[#c.flow_counts + 1] = { f.id, flat }
    return
  end
  local there = flow_check.recount(c.p, f.id, COUNTED_N)
  c.spent = c.spent + math.floor(listed / 2)
  for _, list in ipairs({ COUNTERS, COUNTED }) do
    for i = 1, #list do
      local name = list[i]
      if f[name] ~= there[name] then say("I12", "counts " .. f[name] .. " " .. name .. ", there are " .. there[name], "count again") end
    end
  end
end

function flow_check.flow(c, key, fid)
  local p, f = c.p, flows.load(c.p, fid)
  local object = check.object(p, key)
  local say = say_of(c, fid, object)
  for _, list in ipairs({ COUNTERS, OTHERS }) do
    for i = 1, #list do
      if not f[list[i]] or f[list[i]] < 0 then return say("I12", list[i] .. " is no number of its record") end
    end
  end
  if not f.state or not STATES[f.state] then return say("I12", "is in no state this library knows: " .. tostring(f.state)) end
  if not redis.call("ZSCORE", keys.flows(p), fid) then say("I3", "is not among the flows", "put it among them") end
  local ended = f.state == "ended"
  if f.state == "purging" then
    if not check.is_armed(c, "flow", fid) then say("I18", "is being purged and nothing goes on with it", "look at it") end
    return
  end
  if ended ~= (f.outcome ~= false) or ended ~= (f.ended_at > 0) then say("I12", f.state .. ", outcome " .. tostring(f.outcome) .. ", ended at " .. string.format("%.0f", f.ended_at)) end
  if (f.policy ~= false) ~= (f.cancelled_at > 0) then say("I12", "cancelled by " .. tostring(f.policy) .. " at " .. string.format("%.0f", f.cancelled_at)) end
  if (ended or f.state == "live" and f.members == 0) and not check.is_armed(c, "flow", fid) then say("I18", f.state .. " and nothing will ever purge it", "look at it") end
  local function armed(kind, wanted)
    if (redis.call("ZSCORE", keys.timers(p), kind .. ":" .. fid) ~= false) ~= wanted then
      say("I5", f.state .. ", its timer " .. kind .. (wanted and " is not set" or " is set"), "set its timers")
    end
  end
  armed("staging", f.state == "staging")
  armed("flow_cancel", f.cancel_at > 0)
  local alive = flows.alive(f)
  if ended and f.policy ~= "flow_only" and alive + f.resolving > 0 then
    say("I12", "has ended and counts " .. alive .. " members that live, " .. f.resolving .. " being resolved", "count again")
  elseif f.state == "live" and alive - (f.policy == "flow_only" and f.blocked or 0) + f.resolving == 0 and (f.members > 0 or f.policy) then
    say("I12", "lives and nothing of it goes on", "let it end")
  end
  counts(c, f, say)
end

-- Anything a flow keeps beside its record.
function flow_check.of_flow(c, key, fid)
  if redis.call("EXISTS", keys.flow(c.p, fid)) == 0 then
    check.say(c, "I18", c.p.id_prefix .. fid, check.object(c.p, key) .. " is left over: its flow is gone", "delete the key", check.object(c.p, key))
  end
end

-- A row of the set of all flows.
function flow_check.listed(c, key, fid)
  if redis.call("EXISTS", keys.flow(c.p, fid)) == 0 then
    check.say(c, "I3", c.p.id_prefix .. fid, "is among the flows and there is no such flow", "drop the member", check.object(c.p, key, fid))
  end
end

-- A row of a flow's members.
function flow_check.member(c, key, id, number)
  local p, fid = c.p, string.sub(key, -36)
  c.spent = c.spent + 1
  local r = redis.call("HMGET", keys.core(p, id), record.short("state"), record.short("flow"), record.short("node"))
  if r[1] and r[2] == fid and tonumber(r[3]) == tonumber(number) then return end
  local what = not r[1] and "there is no record" or r[2] ~= fid and "its record says of " .. tostring(r[2]) or "its record says number " .. tostring(r[3])
  -- A number that differs is put right from the record's side.
  check.say(c, "I12", p.id_prefix .. id, "is a member of flow " .. fid .. ", and " .. what, (not r[1] or r[2] ~= fid) and "drop the member" or "",
    check.object(p, key, id))
end

-- ---- a member ----------------------------------------------------------------------------------------

-- From its record's end: its place, its edges, what goes on later. Part of check.record.
function flow_check.record(c, x, full)
  local p = c.p
  local function say(invariant, detail, remedy) check.say(c, invariant, full, detail, remedy) end
  if not x.flow then
    if x.node or x.deps or x.outs then say("I12", "has a number or edges and is of no flow") end
    return
  end
  local f = flows.load(p, x.flow)
  if not f then return say("I12", "is of flow " .. x.flow .. ", which there is not") end
  c.spent = c.spent + 6
  local number = redis.call("ZSCORE", keys.members(p, x.flow), x.id)
  if tonumber(number or nil) ~= record.number(x, "node") then
    say("I12", "is number " .. tostring(x.node) .. " of flow " .. x.flow .. ", and there " .. (number or "no member"), "put it where its record says")
  end
  local incoming, outgoing = keys.incoming(p, x.id), keys.outgoing(p, x.id)
  local got = redis.call("HMGET", incoming, "g", "c", "w", "k", "h")
  local listed = redis.call("LLEN", outgoing)
  if (listed > 0) ~= (x.outs ~= nil) then say("I11", "has " .. listed .. " edges to others, its record says otherwise", listed > 0 and "mark its record" or "") end
  if (got[1] and not x.deps) or (got[2] and not x.children) then say("I11", "has edges from others its record does not know of", "mark its record")
  elseif x.deps and not got[1] or x.children and not got[2] then say("I11", "its edges from others are gone") end
  local ended = state.is_terminal(x.state)
  local due_at = { edges = x.resolving ~= nil and ended, reopen = x.reopening ~= nil, siblings = got[4] ~= false, children = got[5] ~= false }
  for _, kind in ipairs({ "edges", "reopen", "siblings", "children" }) do
    if (redis.call("ZSCORE", keys.timers(p), kind .. ":" .. x.id) ~= false) ~= due_at[kind] then
      say("I5", x.state .. ", its timer " .. kind .. (due_at[kind] and " is not set" or " is set"), "set its timers as its record says")
    end
  end
  if type(f.members) == "number" and f.members > COUNTED_N and f.state ~= "purging" then
    c.flow_members[#c.flow_members + 1] = { x.id, x.flow, flow_check.counter(x.state), ended and (x.resolving or x.reopening) and 1 or 0 }
  end
  if ended then
    -- Edges are resolved in the order of the list: the last one tells of all.
    local last = listed > 0 and not x.resolving and not x.reopening and redis.call("LINDEX", outgoing, -1)
    local row = last and graph.read_row(redis.call("HGET", keys.incoming(p, last), x.id) or "")
    if row and row.state == "u" then say("I11", "has ended and its edge to " .. last .. " was not resolved", "resolve its edges") end
    return
  end
  if f.state == "ended" and f.policy ~= "flow_only" then say("I12", "has not ended and its flow has") end
  if f.state == "staging" and x.state ~= "blocked" then say("I11", x.state .. " and its graph is not published") end
  if f.state ~= "live" or f.policy then return end
  local g = graph.read_group(got[1] or nil)
  if not x.lease_id and g and g.state == "p" and g.n > 0 and (QUEUED[x.state] or x.state == "delayed") then
    say("I11", x.state .. " and its upstreams have not ended")
  end
  if x.state ~= "blocked" or x.reason ~= "waiting_for_children" then return end
  if got[3] then
    local left = string.match(got[2] or "", " (%d+)$")
    if left == "0" then say("I11", "waits for children and all have ended") end
  elseif not (g and g.state == "p" and g.n > 0) and not is_publishing(c, x.flow) then
    say("I11", "waits for upstreams and there is none to wait for", "let it go on")
  end
end

-- ---- edges -------------------------------------------------------------------------------------------

-- Who stands in an upstream's list: id -> true, or nil where they are more than `most`. Read once for a page.
function flow_check.dependents(c, key, most)
  c.dependents = c.dependents or {}
  local there = c.dependents[key]
  if there == nil then
    there = false
    if redis.call("LLEN", key) <= most then
      there = {}
      local list = redis.call("LRANGE", key, 0, -1)
      for i = 1, #list do there[list[i]] = true end
      c.spent = c.spent + math.floor(#list / 50)
    end
    c.dependents[key] = there
  end
  return there or nil
end

-- What the rows of an execution make of its group: applied, satisfied and impossible edges, children, those alive.
function flow_check.count_rows(p, id)
  local rows = graph.rows(p, id)
  local there = { n = 0, ok = 0, bad = 0, children = 0, left = 0 }
  for i = 1, #rows do
    local row = rows[i]
    if row.kind == "c" then
      there.children = there.children + 1
      if row.state == "u" then there.left = there.left + 1 end
    elseif row.state ~= "g" then
      there.n = there.n + 1
      if row.state == "S" or row.state == "s" then there.ok = there.ok + 1 elseif row.state == "I" then there.bad = there.bad + 1 end
    end
  end
  return there
end

function flow_check.incoming(c, key, id)
  local p, object = c.p, check.object(c.p, key)
  local say = say_of(c, id, object)
  if redis.call("EXISTS", keys.core(p, id)) == 0 then return say("I18", object .. " is left over: its record is gone", "delete the key") end
  local n = redis.call("HLEN", key)
  if n > ROWS_N then return end
  c.spent = c.spent + math.floor(n / 4)
  local got, there = redis.call("HMGET", key, "g", "c"), flow_check.count_rows(p, id)
  local g = graph.read_group(got[1] or nil)
  if got[1] and not g then return say("I11", "its group cannot be read: " .. string.sub(got[1], 1, 40)) end
  if there.n > 0 and not g then return say("I11", "has edges from others and no group") end
  if g then
    if g.n ~= there.n or g.ok ~= there.ok or g.bad ~= there.bad then
      say("I11", string.format("counts %d edges, %d satisfied, %d impossible; there are %d, %d and %d", g.n, g.ok, g.bad, there.n, there.ok, there.bad), "count again")
    elseif g.n > 0 and g.state == "p" and graph.verdict(g) ~= "p" then
      say("I11", "its group is pending and its edges have decided it")
    end
  end
  local children, left = string.match(got[2] or "0 0", "^(%d+) (%d+)$")
  if not children then return say("I11", "its count of children cannot be read") end
  if tonumber(children) ~= there.children or tonumber(left) ~= there.left then
    say("I11", "counts " .. children .. " children, " .. left .. " alive; there are " .. there.children .. " and " .. there.left, "count again")
  end
end

-- One row: it can be read, its upstream is there, of the same flow, and knows of it.
function flow_check.row(c, key, field, text)
  if #field ~= 36 then return end
  c.spent = c.spent + 2
  local p, id = c.p, string.sub(key, -36)
  local say = say_of(c, id, check.object(p, key, field))
  local row = graph.read_row(text)
  if not row or not graph.WORDS[row.kind] or not string.find(row.state, "[guSsI]") then return say("I11", "its edge from " .. field .. " cannot be read") end
  local mine = redis.call("HGET", keys.core(p, id), record.short("flow"))
  if not mine then return end   -- told of with the key
  local up = redis.call("HMGET", keys.core(p, field), record.short("state"), record.short("flow"))
  if up[2] ~= mine then
    local f = flows.load(p, mine)
    -- A flow that is being purged loses its members one after the other.
    if f and f.state ~= "purging" then say("I11", "depends on " .. field .. ", which is " .. (up[1] and "of another flow" or "gone")) end
    return
  end
  local known = row.state ~= "g" and flow_check.dependents(c, keys.outgoing(p, field), LISTED_N)
  if known and not known[id] then
    say("I11", "depends on " .. field .. ", which does not know of it", "tell its upstream")
  end
end

function flow_check.outgoing(c, key, id)
  if redis.call("EXISTS", keys.core(c.p, id)) == 0 then
    check.say(c, "I18", c.p.id_prefix .. id, check.object(c.p, key) .. " is left over: its record is gone", "delete the key", check.object(c.p, key))
  end
end

-- One entry of an upstream's list: its downstream has the row.
function flow_check.entry(c, key, down)
  local p, id = c.p, string.sub(key, -36)
  if redis.call("HEXISTS", keys.incoming(p, down), id) == 1 then return end
  local x = record.load(p, id)
  local f = x and x.flow and flows.load(p, x.flow)
  if not f or f.state == "purging" then return end
  check.say(c, "I11", p.id_prefix .. id, "says that " .. down .. " depends on it, which " .. (redis.call("EXISTS", keys.core(p, down)) == 1 and "does not" or "is gone"),
    "drop the member", check.object(p, key, down))
end

-- The name of an edge that was staged by itself.
function flow_check.named(c, key, edge)
  local p = c.p
  if graph.edge_of(p, string.sub(key, -36), edge) then return end
  local f = flows.load(p, string.sub(key, -36))
  if f and f.state == "purging" then return end
  check.say(c, "I11", p.id_prefix .. string.sub(key, -36), "names edge " .. string.sub(edge, 1, 40) .. ", and nobody has it", "drop the member", check.object(p, key, edge))
end

-- ---- timers ------------------------------------------------------------------------------------------

local OF_FLOWS = { staging = true, flow_cancel = true, publish = true }
local OF_MEMBERS = { edges = true, reopen = true, siblings = true, children = true }

-- A timer of a kind that is about flows: whether it is one. What its record says of it is told of with the record.
function flow_check.timer(c, kind, id, object)
  if not OF_FLOWS[kind] and not OF_MEMBERS[kind] then return false end
  local p, uuid = c.p, string.match(id, "^%S+")
  local there
  if OF_FLOWS[kind] then there = redis.call("EXISTS", keys.flow(p, uuid)) == 1 else there = redis.call("HEXISTS", keys.core(p, uuid), record.short("flow")) == 1 end
  if not there then
    check.say(c, "I3", p.id_prefix .. uuid, "timer " .. kind .. " is set and " .. (OF_FLOWS[kind] and "there is no such flow" or "there is no such member"), "drop the member", object)
  end
  return true
end
end
