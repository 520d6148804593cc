-- shared/graph.lua -- edges between executions of a flow, and what follows when an upstream has ended.
--
-- An edge stands in two places: as a row of its downstream (keys.incoming, which the rest of this file calls rows), and
-- as the downstream's id in its upstream's list (keys.outgoing). When a member ends, its edges are resolved one after the
-- other before the call closes (graph.settle), up to EDGES_INLINE_N in one call; the rest follows by timer.
--
-- A row: "<order> <kind> <state> <made at>", and where there is any of it " <edge id or -> <flags or -> <data ref>".
--   kind   s success_only, a always, f on_failure, c child (a spawned execution's, to its parent)
--   state  g staged (does not count yet), u unresolved, S satisfied, s satisfied after its group was decided, I impossible
--   flags  w<lease epoch> its parent awaits it, x it is not cancelled with its parent; how its upstream ended when it was resolved, where
--          a group counts that apart: F failed or expired, K skipped, X cancelled
-- Beside the rows: g the group, c "<children> <unresolved ones>", w what a parent waits for ("*": all, or how many),
-- k and h how far a cancel of the upstreams or of the children has come.
--
-- A group: "<A all_of | O any_of | Q quorum> <k> <c cancel_remaining | l let_run | -> <edges> <satisfied> <impossible>
-- <failed> <skipped> <cancelled> <p pending | s satisfied | i impossible | c impossible
-- after its execution had ended anyhow>". It is decided once.

local graph = {}
do -- a chunk may hold 200 locals

-- Called while the library loads: how a kind of work is done that members' ends ask for (flows.queue); work(p, item).
local work = {}
function graph.does(what, how) work[what] = how end

graph.LETTERS = { success_only = "s", always = "a", on_failure = "f", child = "c" }
graph.WORDS = { s = "success_only", a = "always", f = "on_failure", c = "child" }

local ALWAYS = { completed = true, failed = true, cancelled = true, expired = true, skipped = true }
local SATISFIED_BY = { s = { completed = true }, a = ALWAYS, f = { failed = true, expired = true }, c = ALWAYS }
local MARKS = { failed = "F", expired = "F", skipped = "K", cancelled = "X" }
local MARKED = { F = "failed", K = "skipped", X = "cancelled" }
local TALLY = { failed = "failed", expired = "failed", skipped = "skipped", cancelled = "cancelled" }

-- A member as this call knows it. What settles goes from edge to edge and comes to the same ones again: one table for each
-- while it does, and all who change one then take it from here. The claim that follows finds them here too.
function graph.member(p, id)
  local known = p.known
  if not known then
    known = {}
    p.known = known
  end
  local x = known[id]
  if x == nil then
    x = record.load_all(p, id) or false
    known[id] = x
  end
  return x or nil
end

-- ---- rows and groups -----------------------------------------------------------------------------------------------

-- A row as text; edge, flags and ref may be nil.
function graph.row(order, kind, word, at, edge, flags, ref)
  local text = order .. " " .. kind .. " " .. word .. " " .. at
  if edge or flags or ref then text = text .. " " .. (edge or "-") .. " " .. (flags or "-") .. (ref and " " .. ref or "") end
  return text
end

-- A row as a table: order, kind, state, at, edge, flags, ref (the last three may be nil).
function graph.read_row(text)
  local order, kind, word, at, more = string.match(text, "^(%d+) (%a) (%a) (%d+) ?(.*)$")
  if not order then return nil end
  local row = { order = tonumber(order), kind = kind, state = word, at = tonumber(at) }
  if more ~= "" then
    local edge, flags, ref = string.match(more, "^(%S+) (%S+) ?(.*)$")
    row.edge, row.flags, row.ref = edge ~= "-" and edge or nil, flags ~= "-" and flags or nil, ref ~= "" and ref or nil
  end
  return row
end

function graph.row_text(row) return graph.row(row.order, row.kind, row.state, row.at, row.edge, row.flags, row.ref) end

-- A row that was resolved is open again. Answers how its upstream had ended, as far as groups count that (nil: well).
function graph.reopen_row(row)
  local mark = string.match(row.flags or "", "[FKX]")
  if mark then
    row.flags = string.gsub(row.flags, mark, "")
    if row.flags == "" then row.flags = nil end
  end
  row.state = "u"
  return MARKED[mark]
end

-- A new group of n edges: policy letter, k (any_of: 1), c, l or -.
function graph.group(policy, k, on_satisfied, n)
  return { policy = policy, k = k or 0, on = on_satisfied or "-", n = n, ok = 0, bad = 0, failed = 0, skipped = 0, cancelled = 0, state = "p" }
end

function graph.group_text(g)
  return g.policy .. " " .. g.k .. " " .. g.on .. " " .. g.n .. " " .. g.ok .. " " .. g.bad .. " " .. g.failed .. " " .. g.skipped .. " "
    .. g.cancelled .. " " .. g.state
end

function graph.read_group(text)
  local policy, k, on, n, ok, bad, failed, skipped, cancelled, word =
    string.match(text or "", "^(%u) (%d+) (%S) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%a)$")
  if not policy then return nil end
  return { policy = policy, k = tonumber(k), on = on, n = tonumber(n), ok = tonumber(ok), bad = tonumber(bad), failed = tonumber(failed),
    skipped = tonumber(skipped), cancelled = tonumber(cancelled), state = word }
end

-- How a group stands by its counts alone. Whether enough can succeed is asked when an edge has resolved, not before: edges
-- that are applied one by one come to be as many as it needs.
function graph.verdict(g)
  if g.ok + g.bad == 0 then return "p" end
  if g.policy == "A" then return g.bad > 0 and "i" or g.ok == g.n and "s" or "p" end
  return g.ok >= g.k and "s" or g.bad > 0 and g.n - g.bad < g.k and "i" or "p"   -- without a miss, others may yet be applied
end

-- What an impossible group that tolerated some misses makes of its flow's outcome: the counter it counts in, or nil.
local function blame(g)
  if g.state == "i" and g.policy ~= "A" then return g.failed > 0 and "broken" or g.cancelled > 0 and "cancels" or nil end
end

-- Count an upstream's end in a group (by: 1), or take it back (by: -1), and let `word` be its state then (nil: as it was).
function graph.tally(p, f, g, outcome, good, by, word)
  local before = blame(g)
  if good then g.ok = g.ok + by else g.bad = g.bad + by end
  local also = TALLY[outcome]
  if also then g[also] = g[also] + by end
  g.state = word or g.state
  local after = blame(g)
  if before ~= after then
    if before then flows.add(p, f, before, -1) end
    if after then flows.add(p, f, after, 1) end
  end
end

function graph.is_satisfied_by(kind, outcome) return SATISFIED_BY[kind][outcome] or false end

-- All rows of an execution in their order: each with `up`, its upstream; and the group, the children's count and the rest
-- as they are stored.
function graph.rows(p, id)
  local flat, rows, rest = redis.call("HGETALL", keys.incoming(p, id)), {}, {}
  for i = 1, #flat, 2 do
    if #flat[i] == 36 then
      local row = graph.read_row(flat[i + 1])
      if row then
        row.up = flat[i]
        rows[#rows + 1] = row
      end
    else
      rest[flat[i]] = flat[i + 1]
    end
  end
  table.sort(rows, function(l, r) return l.order < r.order or (l.order == r.order and l.up < r.up) end)
  return rows, rest
end

-- ---- building ------------------------------------------------------------------------------------------------------

-- The number of a new member; its record has to say flow and node. For a record in the making: state.create counts it.
function graph.number(p, f, id)
  flows.add(p, f, "members", 1)
  queue.note(p, keys.members(p, f.id), id, f.members)
  return f.members
end

-- An execution that exists becomes a member. Answers its number. The caller has looked that it may.
function graph.add_member(p, f, x)
  local n = graph.number(p, f, x.id)
  record.write(p, x, "flow", f.id, "node", n)
  if not f.lane then flows.set(p, f, "lane", x.lane) end
  flows.add(p, f, "revision", 1)
  flows.count(p, x, nil, x.state)
  return n
end

-- Remember that `down` depends on `up`; written when the call settles, one RPUSH for each upstream. `marked`: the
-- upstream's record says already (or will, by the same call) that there are some (outs).
function graph.link(p, up, down, marked)
  local links = p.links
  if not links then
    links = { order = {}, at = {} }
    p.links = links
  end
  local list = links.at[up]
  if not list then
    list = { marked = marked }
    links.at[up], links.order[#links.order + 1] = list, up
  end
  list[#list + 1] = down
end

-- The rows of a downstream: `flat` has upstream id, row text, ... ; `g` its group (nil: as it is). Counts the edges and
-- writes at once; the links beside it are the caller's (graph.link).
function graph.attach(p, f, down, g, flat)
  local key = keys.incoming(p, down)
  if g then redis.call("HSET", key, "g", graph.group_text(g)) end
  for i = 1, #flat, 2000 do redis.call("HSET", key, unpack(flat, i, math.min(#flat, i + 1999))) end
  flows.add(p, f, "edges", #flat / 2)
end

function graph.flush_links(p)
  local links = p.links
  if not links then return end
  p.links = nil
  for i = 1, #links.order do
    local up = links.order[i]
    local list = links.at[up]
    local key = keys.outgoing(p, up)
    for from = 1, #list, 4000 do redis.call("RPUSH", key, unpack(list, from, math.min(#list, from + 3999))) end
    if not list.marked then redis.call("HSET", keys.core(p, up), record.short("outs"), "1", record.short("more"), "1") end
  end
end

-- The edge of a spawned child to its parent (whose record is x, a member of f). The child's record has to say outs.
function graph.add_child(p, f, x, child, abandon)
  local key = keys.incoming(p, x.id)
  local total, left = string.match(redis.call("HGET", key, "c") or "0 0", "^(%d+) (%d+)$")
  total, left = tonumber(total) + 1, tonumber(left) + 1
  redis.call("HSET", key, "c", total .. " " .. left, child, graph.row(total, "c", "u", record.text(p, p.now), nil, abandon and "x" or nil))
  graph.link(p, child, x.id, true)
  flows.add(p, f, "edges", 1)
  flows.add(p, f, "revision", 1)
  if not x.children then record.write(p, x, "children", "1") end
end

-- What a parent under a lease is to wait for: of the children named (nil: of all it has), `need` (0: all of these). Answers
-- how many of them have to end yet, or nil and the id of one that is no child of it. Writes nothing when that is 0.
-- Marks carry the lease they were made under: those of an earlier wait say nothing of this one.
function graph.await(p, x, named, need)
  local key = keys.incoming(p, x.id)
  if not named then
    local left = tonumber(string.match(redis.call("HGET", key, "c") or "0 0", "%d+$"))
    if left > 0 then redis.call("HSET", key, "w", "*") end
    return left
  end
  local got, open, ended, set = redis.call("HMGET", key, unpack(named)), 0, 0, {}
  for i = 1, #named do
    local row = got[i] and graph.read_row(got[i])
    if not row or row.kind ~= "c" then return nil, named[i] end
    if row.state == "u" then
      open = open + 1
      row.flags = (string.find(row.flags or "", "x", 1, true) and "xw" or "w") .. x.lease_epoch
      set[#set + 1], set[#set + 2] = named[i], graph.row_text(row)
    else
      ended = ended + 1
    end
  end
  local left = need == 0 and open or math.max(0, math.min(need - ended, open))
  if left == 0 then return 0 end
  set[#set + 1], set[#set + 2] = "w", left .. " w" .. x.lease_epoch
  redis.call("HSET", key, unpack(set))
  return left
end

-- How many marked children a parent waits for, and the mark; nil when it waits for none, or for all it has.
function graph.awaited(waits)
  local need, mark = string.match(waits or "", "^(%d+) (w%d+)$")
  return tonumber(need), mark
end

-- ---- what a decided group does -------------------------------------------------------------------------------------

local DELAYED_FOR = { retry = "waiting_for_retry_backoff", resumed = "waiting_for_resume_delay" }

-- Let a blocked execution go: to its queue, or until it is due.
function graph.promote(p, x, why)
  local due = tonumber(x.due or "0")
  if due > p.now then
    state.move(p, x, "delayed", why, "reason", DELAYED_FOR[x.next] or "waiting_for_delay", "at", due, "due", false, "moved_at", p.now)
  elseif x.lease_id then
    state.requeue(p, x, why, "reason", false, "due", false)
  elseif x.paused then
    state.move(p, x, "ready", why, "reason", false, "due", false, "turn", queue.turn(p, x, true), "eligible_at", p.now, "moved_at", p.now)
  else
    -- The way of every member.
    state.step(p, x, "ready", why, "turn", queue.turn(p, x, true), "eligible_at", record.text(p, p.now))
    record.write(p, x, "reason", false, "due", false)
  end
end

-- Let what does not run wait for its upstreams, whatever it waited for before; when it was due is kept for afterwards.
function graph.hold(p, x, why)
  local due = x.state == "delayed" and x.at or nil
  if x.paused then
    due = due or string.match(x.paused, "^%d+ %S+ (%d+)$")
    if due then record.write(p, x, "paused", string.match(x.paused, "^%d+")) end
  end
  state.move(p, x, "blocked", why, "reason", "waiting_for_children", "due", due or x.due or false, "grant", false, "moved_at", p.now)
end

-- A group is decided: what that makes of its execution. Only where it is blocked for that alone.
function graph.act(p, f, x, word)
  if x.state ~= "blocked" or x.reason ~= "waiting_for_children" or f.state == "staging" or f.state == "purging" then return end
  if f.policy and f.policy ~= "flow_only" and not x.started_at then
    attempt.request_cancel(p, x, "its flow was cancelled", "flow_cascade")
  elseif word == "s" then
    graph.promote(p, x, "upstreams")
  else
    state.finish(p, x, "skipped", "upstream")
  end
end

-- The same for an execution whose group may have been decided when nothing could be done yet (a graph is published).
function graph.look(p, f, x)
  local got = redis.call("HMGET", keys.incoming(p, x.id), "g", "w")
  local g = graph.read_group(got[1])
  if g and g.state ~= "p" and not got[2] then graph.act(p, f, x, g.state) end
end

-- ---- resolving -----------------------------------------------------------------------------------------------------

-- A child has ended: its parent may go on. Only one that waits for its children, and no more for this one.
local function child_ended(p, down, key, got, head, was, tail, up)
  if was ~= "u" then return end
  local total, left = string.match(got[4] or "0 0", "^(%d+) (%d+)$")
  left = math.max(0, tonumber(left) - 1)
  local waits, set = got[3], { up, head .. " S" .. tail, "c", total .. " " .. left }
  local need, mark = graph.awaited(waits)
  local met = false
  if waits == "*" then met = left == 0
  elseif need and string.find(tail, mark, 1, true) then
    met = need <= 1
    set[5], set[6] = "w", need - 1 .. " " .. mark
  end
  redis.call("HSET", key, unpack(set))
  if met then
    redis.call("HDEL", key, "w")
    local x = graph.member(p, down)
    if x and x.state == "blocked" and x.reason == "waiting_for_children" then state.requeue(p, x, "children", "reason", false) end
  end
end

-- The same for one whose upstreams have all done well. Most have nothing but that to wait for: of these no more is read
-- than their move needs.
local function let_go(p, f, down)
  local x = p.known and p.known[down]
  if not x and not p.whole and not f.policy then
    local key = keys.core(p, down)
    local r = redis.call("HMGET", key, "s", "b", "l", "p", "cp", "fk", "po", "c", "li", "du", "pa")
    if r[1] == "blocked" and r[2] == "waiting_for_children" and not r[9] and not r[10] and not r[11] and f.state ~= "staging" and f.state ~= "purging" then
      return graph.promote(p, { id = down, key = key, state = "blocked", reason = r[2], lane = r[3], priority = r[4], cap = r[5], fair = r[6],
        policy = r[7], created_at = r[8], turn = false, eligible_at = false, flow = f.id, more = "1" }, "upstreams")
    end
  end
  x = x or graph.member(p, down)
  if x then graph.act(p, f, x, "s") end
end

-- An execution with one edge, before it is resolved and once it is satisfied.
local ALONE, ALONE_MET = "A 0 - 1 0 0 0 0 0 p", "A 0 - 1 1 0 0 0 0 s"

-- Tell the edge from `up` to `down` how `up` ended. Answers whether the edge handles such an end: whether it provides for
-- it, so that it is no failure of the flow.
function graph.resolve(p, f, up, outcome, down)
  local key = keys.incoming(p, down)
  local got = redis.call("HMGET", key, "g", up, "w", "c")
  if not got[2] then return false end
  local head, kind, was, tail = string.match(got[2], "^(%d+ (%a)) (%a)(.*)$")
  if was == "g" then return false end
  if kind == "c" then
    child_ended(p, down, key, got, head, was, tail, up)
    return true
  end
  if got[1] == ALONE and was == "u" and kind ~= "f" and outcome == "completed" then
    -- The way of every chain: its only edge, and satisfied.
    redis.call("HSET", key, up, head .. " S" .. tail, "g", ALONE_MET)
    if not got[3] then let_go(p, f, down) end
    return false
  end
  local g = graph.read_group(got[1])
  local handles = g.policy ~= "A" or kind == "f" and SATISFIED_BY.f[outcome] or false
  if was ~= "u" then return handles end
  local good, pending = SATISFIED_BY[kind][outcome] or false, g.state == "p"
  graph.tally(p, f, g, outcome, good, 1)
  local word = pending and graph.verdict(g) or g.state
  local x = pending and word == "i" and graph.member(p, down)
  -- An execution that has ended without it (cancelled as one of a race that nobody needed) is not missed.
  if x and state.is_terminal(x.state) then word = "c" end
  if pending and word ~= "p" then graph.tally(p, f, g, nil, true, 0, word) end
  -- Late is what comes after there was enough; after there could not be enough any more, it counts once that is undone.
  local stands = good and (g.state == "s" and not pending and "s" or "S") or "I"
  local text
  if MARKS[outcome] then
    local row = graph.read_row(got[2])
    row.state, row.flags = stands, (row.flags or "") .. MARKS[outcome]
    text = graph.row_text(row)
  else
    text = head .. " " .. stands .. tail
  end
  redis.call("HSET", key, up, text, "g", graph.group_text(g))
  if pending and word ~= "p" then
    if word == "s" and g.on == "c" and g.ok + g.bad < g.n then flows.queue(p, { what = "siblings", id = down, from = 0 }) end
    if not got[3] then
      if word == "s" then let_go(p, f, down)
      elseif x then graph.act(p, f, x, word) end
    end
  end
  return handles
end

-- The edges of a member that has ended, from a place in its list on.
graph.does("edges", function(p, item)
  local x = graph.member(p, item.id)
  local f = x and flows.load(p, x.flow)
  if not f then return end
  local page, from, handled = math.max(0, p.edges_left), item.from, item.handled
  local got = redis.call("LRANGE", keys.outgoing(p, x.id), from, from + page)
  local n = math.min(#got, page)
  p.edges_left = p.edges_left - n
  for i = 1, n do handled = graph.resolve(p, f, x.id, item.outcome, got[i]) or handled end
  if #got > page then
    record.write(p, x, "resolving", (from + n) .. (handled and " 1" or " 0"))
    timers.set(p, "edges", x.id, p.now)
    return
  end
  if x.resolving then record.write(p, x, "resolving", false) end
  if not handled then flows.unhandled(p, f, x, item.outcome) end
  flows.add(p, f, "resolving", -1)
  flows.look(p, f)
end)

due.on("edges", function(p, id)
  local x = record.load(p, id)
  if not x or not x.resolving or not state.is_terminal(x.state) then return end
  local from, handled = string.match(x.resolving, "^(%d+) (%d)$")
  flows.queue(p, { what = "edges", id = id, x = x, outcome = x.state, from = tonumber(from), handled = handled == "1" })
end)

-- Do what the ends of members ask for, and what that asks for in turn, as far as this call may. Before the partition is
-- flushed, and before a claim that is to find what it makes ready.
function graph.settle(p)
  if p.links then graph.flush_links(p) end
  local list = p.settling
  if not list then return end
  p.edges_left = p.edges_left or LIMITS.EDGES_INLINE_N
  p.known = {}   -- what was read before may have been written by others since
  local at = 1
  while list[at] do
    local item = list[at]
    at = at + 1
    if item.x then p.known[item.id] = item.x end   -- whoever ended it has just written it
    work[item.what](p, item)
  end
  p.settling = nil
end

-- ---- what a downstream sees ----------------------------------------------------------------------------------------

-- What an execution waits for that waits for others, as text; nil: for nothing more.
function graph.waits(p, x)
  local f = x.flow and flows.load(p, x.flow)
  if f and (f.state == "staging" or f.state == "purging") then return "its graph is not published" end
  if not x.deps and not x.children then return nil end
  local got = redis.call("HMGET", keys.incoming(p, x.id), "g", "w")
  if got[2] then return "children: " .. (got[2] == "*" and "all" or got[2]) .. " of them have to end yet" end
  local g = graph.read_group(got[1])
  if g and g.n > 0 and g.state ~= "s" then
    return "upstreams: " .. g.ok .. " of " .. g.n .. " are satisfied" .. (g.state == "p" and "" or ", and no more can be")
  end
end

-- ---- names of edges ------------------------------------------------------------------------------------------------

-- The id of an edge nobody named: it follows from the flow and both numbers (ffcore/flows.py has the same).
function graph.edge_id(fid, up, down)
  return string.format("%08x-%04x-8%03x-8%s", up, math.floor(down / 4096), down % 4096, string.sub(fid, 21))
end

-- The edge of an id: its upstream, its downstream, its row, and the revision it was staged at (0: it came with its
-- nodes). nil when there is none. Edges staged one by one are kept as "<number up> <number down> <revision>".
function graph.edge_of(p, fid, edge)
  local up_no, down_no, revision = string.match(redis.call("HGET", keys.edges(p, fid), edge) or "", "^(%d+) (%d+) (%d+)$")
  local named = up_no ~= nil
  if not named then
    local a, b, c = string.match(edge, "^(%x%x%x%x%x%x%x%x)%-(%x%x%x%x)%-8(%x%x%x)%-8")
    if not a then return nil end
    up_no, down_no = tonumber(a, 16), tonumber(b .. c, 16)
    if graph.edge_id(fid, up_no, down_no) ~= edge then return nil end
  end
  local key = keys.members(p, fid)
  local up = redis.call("ZRANGE", key, up_no, up_no, "BYSCORE", "LIMIT", 0, 1)[1]
  local down = redis.call("ZRANGE", key, down_no, down_no, "BYSCORE", "LIMIT", 0, 1)[1]
  local text = up and down and redis.call("HGET", keys.incoming(p, down), up)
  local row = text and graph.read_row(text)
  if row and row.edge == (named and edge or nil) then return up, down, row, tonumber(revision or "0") end
end

end
