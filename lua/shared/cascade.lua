-- shared/cascade.lua -- what spreads through a flow: cancels, and what a replay opens again.
--
-- Each is a piece of work in the list that graph.settle goes through. It goes on from a place, does as much as the call
-- may (p.edges_left), and leaves the rest to a timer; where it stands is kept with what it is about, so that a timer that
-- runs twice does no more than once.
--
--   siblings:<execution>  upstreams that its decided group does not need any more; place: k among its rows
--   children:<execution>  what a cancelled parent has spawned; place: h among its rows
--   flow_cancel:<flow>    members of a cancelled flow; place: cancel_at, the last number looked at
--   reopen:<execution>    downstreams of one that was replayed; place: its record's `reopening`

local cascade = {}
do -- a chunk may hold 200 locals

local EDGES_SEARCHED_N = 4 * LIMITS.CYCLE_SEARCH_N   -- a search looks at so many: two milliseconds
local REASONS = { not_needed = "enough of the others have succeeded", parent_cancelled = "its parent was cancelled" }

-- Cancel a member for the flow's sake, if it has not ended and owes nothing. Answers whether it has ended by this.
function cascade.cancel_member(p, x, reason, source)
  if state.is_terminal(x.state) or x.pending_outcome then return false end
  attempt.request_cancel(p, x, reason, source)
  return state.is_terminal(x.state)
end

-- Whether there is a way from one execution to another along the edges; nil when too many would have to be looked at.
function cascade.leads_to(p, from, to)
  local seen, list, at, edges = { [from] = true }, { from }, 1, 0
  while list[at] do
    if at > LIMITS.CYCLE_SEARCH_N then return nil end
    local downs = redis.call("LRANGE", keys.outgoing(p, list[at]), 0, LIMITS.CYCLE_SEARCH_N)
    at, edges = at + 1, edges + #downs
    if edges > EDGES_SEARCHED_N then return nil end
    for i = 1, #downs do
      if downs[i] == to then return true end
      if not seen[downs[i]] then
        seen[downs[i]] = true
        list[#list + 1] = downs[i]
      end
    end
  end
  return false
end

-- ---- upstreams and children ----------------------------------------------------------------------------------------

local LOOKED_AT_N = 64   -- downstreams looked at to find out whether somebody else needs an upstream

-- Whether anybody but `down` waits for an execution.
local function is_needed(p, id, down)
  local others = redis.call("LRANGE", keys.outgoing(p, id), 0, LOOKED_AT_N)
  if #others > LOOKED_AT_N then return true end
  for i = 1, #others do
    if others[i] ~= down then
      p.edges_left = p.edges_left - 1
      local got = redis.call("HMGET", keys.incoming(p, others[i]), "g", id)
      local row, g = got[2] and graph.read_row(got[2]), graph.read_group(got[1])
      if row and row.state == "u" and (row.kind == "c" or not g or g.state == "p") then
        local word = redis.call("HGET", keys.core(p, others[i]), record.short("state"))
        if word and not state.is_terminal(word) then return true end
      elseif row and row.state == "g" then
        return true
      end
    end
  end
  return false
end

-- Go through the unresolved rows of an execution that `wanted` picks, from a place on. Where it came to is kept in `place`.
local function through_rows(p, item, place, wanted, act)
  if p.edges_left <= 0 then
    redis.call("HSET", keys.incoming(p, item.id), place, item.from)
    return timers.set(p, item.what, item.id, p.now)
  end
  local rows, last = graph.rows(p, item.id), nil
  for i = 1, #rows do
    local row = rows[i]
    if row.order > item.from and row.state == "u" and wanted(row) then
      if p.edges_left <= 0 then
        redis.call("HSET", keys.incoming(p, item.id), place, last or item.from)
        timers.set(p, item.what, item.id, p.now)
        return
      end
      p.edges_left = p.edges_left - 1
      last = row.order
      local x = graph.member(p, row.up)
      if x and not state.is_terminal(x.state) then act(x) end
    end
  end
  if item.kept then redis.call("HDEL", keys.incoming(p, item.id), place) end
end

graph.does("siblings", function(p, item)
  through_rows(p, item, "k", function(row) return row.kind ~= "c" end, function(x)
    if is_needed(p, x.id, item.id) then return end
    if cascade.cancel_member(p, x, REASONS.not_needed, "not_needed") and x.deps then
      -- It will not run: what only it needed is not needed either.
      flows.queue(p, { what = "siblings", id = x.id, from = 0 })
    end
  end)
end)

graph.does("children", function(p, item)
  through_rows(p, item, "h", function(row) return row.kind == "c" and not string.find(row.flags or "", "x", 1, true) end,
    function(x) cascade.cancel_member(p, x, REASONS.parent_cancelled, "parent_cancelled") end)
end)

local function go_on(what, place)
  due.on(what, function(p, id)
    local from = redis.call("HGET", keys.incoming(p, id), place)
    if from then flows.queue(p, { what = what, id = id, from = tonumber(from), kept = true }) end
  end)
end
go_on("siblings", "k")
go_on("children", "h")

-- Cancel all that a parent has spawned (not what it has let go), as far as this call may; the rest follows.
function cascade.cancel_children(p, id) flows.queue(p, { what = "children", id = id, from = 0 }) end

-- ---- a whole flow --------------------------------------------------------------------------------------------------

-- Cancel a flow: from now on nothing of it that has not begun starts (claim.turned_away). Its members follow as the policy
-- says, in the order of their numbers: cancel_all every one, cancel_pending those that have not begun, flow_only none.
function cascade.cancel_flow(p, f, policy)
  local was = flows.public(f)
  flows.set(p, f, "policy", policy)
  flows.set(p, f, "cancelled_at", p.now)
  flows.add(p, f, "revision", 1)
  events.flow(p, f.id, was, "cancelled", policy)
  if policy ~= "flow_only" then flows.queue(p, { what = "flow_cancel", id = f.id, from = 0 }) end
  flows.look(p, f)
end

graph.does("flow_cancel", function(p, item)
  local f = flows.load(p, item.id)
  if not f or not f.policy then return end
  queue.flush(p)   -- members of this call
  local page, last = math.max(0, p.edges_left), item.from
  local ids = redis.call("ZRANGE", keys.members(p, f.id), "(" .. item.from, "+inf", "BYSCORE", "LIMIT", 0, page + 1, "WITHSCORES")
  p.edges_left = p.edges_left - math.min(page, #ids / 2)
  for i = 1, math.min(page * 2, #ids), 2 do
    local x = graph.member(p, ids[i])
    if x and (f.policy == "cancel_all" or not x.started_at) then cascade.cancel_member(p, x, "its flow was cancelled", "flow_cascade") end
    last = ids[i + 1]
  end
  if #ids / 2 > page then
    flows.set(p, f, "cancel_at", tonumber(last))
    timers.set(p, "flow_cancel", f.id, p.now)
  elseif f.cancel_at > 0 then
    flows.set(p, f, "cancel_at", 0)
  end
  flows.look(p, f)
end)

due.on("flow_cancel", function(p, fid)
  local f = flows.load(p, fid)
  if f and f.policy then flows.queue(p, { what = "flow_cancel", id = fid, from = f.cancel_at }) end
end)

-- What a claim does with a member of a cancelled flow; nil: it may run.
function cascade.turned_away(p, x)
  if x.pending_outcome then return nil end
  local f = flows.load(p, x.flow)
  if not f or not f.policy then return nil end
  if f.policy == "cancel_all" or f.policy == "cancel_pending" and not x.started_at then
    attempt.cancel_at_once(p, x, "its flow was cancelled", "flow_cascade")
    return "cancelled"
  end
  if f.policy == "flow_only" and not x.started_at then
    state.move(p, x, "blocked", "flow_cancelled", "reason", "paused_by_flow_cancel", "grant", false, "moved_at", p.now)
    return "blocked"
  end
end

-- ---- replay --------------------------------------------------------------------------------------------------------

-- How a member's group stands when it is to run again. An edge that made it impossible is open where its upstream was
-- replayed and has not come to it yet. Answers the group, what it comes to, the rows of these edges, and the first upstream
-- that stands in the way.
local function looked_at_again(p, x)
  local rows, rest = graph.rows(p, x.id)
  local g, open, bad = graph.read_group(rest.g), {}, nil
  if not g then return nil end
  for i = 1, #rows do
    if rows[i].state == "I" then
      if redis.call("HEXISTS", keys.core(p, rows[i].up), record.short("reopening")) == 1 then open[#open + 1] = rows[i]
      else bad = bad or rows[i].up end
    end
  end
  local left = graph.read_group(rest.g)
  left.bad = left.bad - #open
  return g, graph.verdict(left), open, bad
end

-- Whether a member may be replayed, and the refusal. One that never began only where its upstreams do not forbid it.
function cascade.check_replay(p, x)
  local f = flows.load(p, x.flow)
  if not f then return nil end
  if f.policy or f.state == "purging" then return reply.reject("flow_already_terminal", flows.public(f)) end
  if not x.deps or x.state ~= "skipped" and x.lease_id then return nil end
  local g, word, _, bad = looked_at_again(p, x)
  if g and word == "i" then return reply.reject("deps_not_satisfied", bad and p.id_prefix .. bad or "its upstreams") end
end

-- What ended with an execution does not bind it when it goes on: what it kept is counted anew at its next end, its
-- deadline is as long as it was. Answers the deadline (nil: none).
function cascade.unend(p, x)
  local lane = lanes.of(p, x.lane)
  if lane.bytes and x.size then
    lane.bytes = math.max(0, lane.bytes - tonumber(x.size))
    lanes.note(p, "y" .. lane.no, lane.bytes)
  end
  local deadline = x.deadline_ms and p.now + tonumber(x.deadline_ms)
  if deadline then timers.set(p, "deadline", x.id, deadline) end
  return deadline
end

-- Its downstreams: they wait again for an edge they had counted. An earlier replay that is still at it comes to all of them.
local function reopen_from(p, x)
  if x.outs and not x.reopening then flows.queue(p, { what = "reopen", id = x.id, from = 0 }) end
end

-- A member was replayed: it has been moved. What depends on it is opened again.
function cascade.replayed(p, x, mode)
  local f = flows.load(p, x.flow)
  if not f then return end
  if x.children then
    redis.call("HDEL", keys.incoming(p, x.id), "w")
    if mode == "fresh" then cascade.cancel_children(p, x.id) end
  end
  reopen_from(p, x)
end

-- A member is to be replayed: its group as its upstreams stand now. Answers whether it has to wait for some.
function cascade.regroup(p, x)
  local f = flows.load(p, x.flow)
  if not f then return false end
  if f.state == "staging" then return true end
  if not x.deps then return false end
  local g, word, open = looked_at_again(p, x)
  if not g then return false end
  local set = {}
  for i = 1, #open do
    local row = open[i]
    graph.tally(p, f, g, graph.reopen_row(row), false, -1)
    set[#set + 1], set[#set + 2] = row.up, graph.row_text(row)
  end
  if #set > 0 then
    graph.tally(p, f, g, nil, true, 0, word)
    set[#set + 1], set[#set + 2] = "g", graph.group_text(g)
    redis.call("HSET", keys.incoming(p, x.id), unpack(set))
  end
  return g.state == "p" and g.n > 0
end

local HELD_AGAIN = { ready = true, delayed = true, reclaimable = true, revoked = true, granted = true, blocked = true }

-- One edge of a replayed upstream: unresolved again, where its downstream has not gone on with what it had.
local function reopen_edge(p, f, up, down)
  local key = keys.incoming(p, down)
  local got = redis.call("HMGET", key, "g", up, "w", "c")
  local row = got[2] and graph.read_row(got[2])
  if not row or row.state == "g" or row.state == "u" then return end
  if row.kind == "c" then
    local total, left = string.match(got[4] or "0 0", "^(%d+) (%d+)$")
    row.state = "u"
    local set = { up, graph.row_text(row), "c", total .. " " .. (tonumber(left) + 1) }
    local need, mark = graph.awaited(got[3])
    if need and string.find(row.flags or "", mark, 1, true) then set[5], set[6] = "w", need + 1 .. " " .. mark end
    redis.call("HSET", key, unpack(set))
    return
  end
  local x = graph.member(p, down)
  -- What has begun goes on with what it had, or has ended with it. What never began has used nothing.
  if not x or got[3] or x.lease_id and x.state ~= "skipped" and not HELD_AGAIN[x.state] then return end
  local g = graph.read_group(got[1])
  local good = row.state ~= "I"
  graph.tally(p, f, g, graph.reopen_row(row), good, -1)
  graph.tally(p, f, g, nil, true, 0, g.state == "c" and graph.verdict(g) == "i" and "c" or graph.verdict(g))
  redis.call("HSET", key, up, graph.row_text(row), "g", graph.group_text(g))
  if g.state ~= "p" then return end
  if x.state ~= "skipped" and not HELD_AGAIN[x.state] then return end   -- it was cancelled, or too late
  if x.state == "skipped" then
    local deadline = cascade.unend(p, x)
    state.move(p, x, "blocked", "reopened", "reason", "waiting_for_children", "at", false, "size", false, "deadline_at", deadline or false, "moved_at", p.now)
    reopen_from(p, x)
  elseif x.state ~= "blocked" or x.reason ~= "waiting_for_children" then
    graph.hold(p, x, "reopened")
  end
end

graph.does("reopen", function(p, item)
  local x = graph.member(p, item.id)
  local f = x and flows.load(p, x.flow)
  if not f then return end
  local page, from = math.max(0, p.edges_left), item.from
  local got = redis.call("LRANGE", keys.outgoing(p, x.id), from, from + page)
  local n = math.min(#got, page)
  p.edges_left = p.edges_left - n
  for i = 1, n do reopen_edge(p, f, x.id, got[i]) end
  if #got > page then
    record.write(p, x, "reopening", from + n)
    timers.set(p, "reopen", x.id, p.now)
    return
  end
  if not x.reopening then return end
  record.write(p, x, "reopening", false)
  -- It has ended meanwhile, and its edges had to wait for this.
  if state.is_terminal(x.state) then flows.queue(p, { what = "edges", id = x.id, x = x, outcome = x.state, from = 0, handled = false }) end
end)

due.on("reopen", function(p, id)
  local x = record.load(p, id)
  if not x or not x.reopening then return end
  flows.queue(p, { what = "reopen", id = id, from = tonumber(x.reopening) })
end)

end
