-- dependency.lua -- edges one by one: stage, apply, resolve, look at.
--
-- A staged edge is part of the graph and holds nobody back; applied, it counts in its downstream's group. Edges resolve
-- when their upstream ends (shared/graph.lua), so ff_resolve_dependency only hurries one that waits for its turn.

-- A flow that may grow; or nil and the refusal.
local function growing(p, fid)
  local f = flows.load(p, fid)
  local refusal = flows.closed(f)
  if refusal then return nil, refusal end
  if f.state == "staging" then return nil, reply.reject("flow_not_found", "its graph is still being sent") end
  return f
end

local function member(p, fid, id)
  local x = record.load_all(p, id)
  if not x or x.flow ~= fid then return nil, reply.reject("execution_not_in_flow", p.id_prefix .. id) end
  return x
end

-- Add an edge to a graph, provided that it is the one the caller saw.
define {
  name    = "ff_stage_dependency_edge",
  args    = { "flow_id:id", "edge_id:str", "upstream_execution_id:id", "downstream_execution_id:id", "dependency_kind:str",
              "data_passing_ref:str?", "expected_graph_revision:int" },
  returns = { "staged" },
  errors  = { "self_referencing_edge", "invalid_dependency", "invalid_input", "flow_not_found", "flow_already_terminal", "stale_graph_revision",
              "execution_not_in_flow", "dependency_already_exists", "cycle_detected", "flow_too_large", "store_full" },
  flags   = {},   -- refused over maxmemory: it grows a graph
  run = function(p, a)
    local up, down = a.upstream_execution_id, a.downstream_execution_id
    if up == down then return reply.reject("self_referencing_edge", p.id_prefix .. up) end
    local kind = graph.LETTERS[a.dependency_kind]
    if not kind or kind == "c" then return reply.reject("invalid_dependency", "dependency_kind: success_only, always or on_failure") end
    if not waitpoints.is_id(a.edge_id) then return reply.reject("invalid_input", "edge_id") end
    if a.data_passing_ref and #a.data_passing_ref > LIMITS.EDGE_REF_BYTES then return reply.reject("invalid_input", "data_passing_ref") end
    local f, refusal = growing(p, a.flow_id)
    if not f then return refusal end
    local known_up, known_down, row = graph.edge_of(p, f.id, a.edge_id)
    if known_up == up and known_down == down and row.kind == kind then
      fence.replayed(p)
      return { "staged", a.edge_id, f.revision }
    end
    if known_up then return reply.reject("dependency_already_exists", a.edge_id) end
    if a.expected_graph_revision ~= f.revision then return reply.reject("stale_graph_revision", f.revision) end
    local from, to
    from, refusal = member(p, f.id, up)
    if not from then return refusal end
    to, refusal = member(p, f.id, down)
    if not to then return refusal end
    local key = keys.incoming(p, down)
    if redis.call("HEXISTS", key, up) == 1 then return reply.reject("dependency_already_exists", p.id_prefix .. up) end
    if redis.call("HEXISTS", keys.incoming(p, up), down) == 1 and string.find(redis.call("HGET", keys.incoming(p, up), down), "^%d+ c") then
      return reply.reject("cycle_detected", p.id_prefix .. up)   -- its own child would have to wait for it
    end
    if f.edges >= LIMITS.FLOW_EDGES_N then return reply.reject("flow_too_large", LIMITS.FLOW_EDGES_N .. " edges") end
    -- The place behind all there are: what stands beside the rows for a while does not count.
    local passing = redis.call("HMGET", key, "w", "k", "h")
    local order = redis.call("HLEN", key) + 1
    for i = 1, 3 do if passing[i] then order = order - 1 end end
    if order > LIMITS.FLOW_CHUNK_EDGES_N then return reply.reject("flow_too_large", LIMITS.FLOW_CHUNK_EDGES_N .. " upstreams") end
    local uphill = tonumber(from.node) > tonumber(to.node)
    if uphill or f.uphill then
      local back = cascade.leads_to(p, down, up)
      if back then return reply.reject("cycle_detected", p.id_prefix .. down) end
      if back == nil then return reply.reject("flow_too_large", "more than " .. LIMITS.CYCLE_SEARCH_N .. " executions to look for a circle in") end
    end
    refusal = partition.full(p)
    if refusal then return refusal end
    if uphill and not f.uphill then flows.set(p, f, "uphill", "1") end
    flows.add(p, f, "revision", 1)
    local fresh = redis.call("HEXISTS", key, "g") == 0 and graph.group("A", 0, "-", 0) or nil
    graph.attach(p, f, down, fresh, { up, graph.row(order, kind, "g", record.text(p, p.now), a.edge_id, nil, a.data_passing_ref) })
    graph.link(p, up, down, from.outs)
    redis.call("HSET", keys.edges(p, f.id), a.edge_id, from.node .. " " .. to.node .. " " .. record.text(p, f.revision))
    if not to.deps then record.write(p, to, "deps", "1") end
    return { "staged", a.edge_id, f.revision }
  end,
}

local HELD_BACK = { ready = true, delayed = true, granted = true, blocked = true }

-- Make a staged edge count: what has not begun waits for it from now on. One whose upstream has ended resolves at once.
define {
  name    = "ff_apply_dependency_to_child",
  args    = { "flow_id:id", "edge_id:str", "downstream_execution_id:id", "upstream_execution_id:id", "graph_revision:int",
              "dependency_kind:str", "data_passing_ref:str?" },
  returns = { "applied", "already_applied" },
  errors  = { "flow_not_found", "flow_already_terminal", "invalid_dependency", "stale_graph_revision", "execution_not_in_flow" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local f, refusal = growing(p, a.flow_id)
    if not f then return refusal end
    local up, down, row, staged_at = graph.edge_of(p, f.id, a.edge_id)
    if not up then return reply.reject("invalid_dependency", "no edge has this id: stage it first") end
    if up ~= a.upstream_execution_id or down ~= a.downstream_execution_id or graph.WORDS[row.kind] ~= a.dependency_kind
      or (a.data_passing_ref or "") ~= (row.ref or "") then
      return reply.reject("invalid_dependency", "it was staged otherwise")
    end
    if row.state ~= "g" then
      fence.replayed(p)
      return { "already_applied" }
    end
    if a.graph_revision > f.revision or a.graph_revision < staged_at then return reply.reject("stale_graph_revision", f.revision) end
    local x
    x, refusal = member(p, f.id, down)
    if not x then return refusal end
    local from
    from, refusal = member(p, f.id, up)
    if not from then return refusal end
    local key, begun = keys.incoming(p, down), x.lease_id and true or false
    local g = graph.read_group(redis.call("HGET", key, "g")) or graph.group("A", 0, "-", 0)
    g.n = g.n + 1
    if not begun and g.state == "s" then g.state = graph.verdict(g) end
    row.state = "u"
    redis.call("HSET", key, "g", graph.group_text(g), up, graph.row_text(row))
    flows.touch(p, f)
    -- While a replay of the upstream still opens its edges again, this one waits with them.
    if state.is_terminal(from.state) and not from.reopening then
      if graph.resolve(p, f, up, from.state, down) then flows.handled(p, f, from, from.state) end
      g = graph.read_group(redis.call("HGET", key, "g"))
      x = record.load_all(p, down)
    end
    if g.state ~= "s" and not begun and HELD_BACK[x.state] and x.reason ~= "waiting_for_children" then
      graph.hold(p, x, "dependency")
      if g.state == "i" then graph.act(p, f, x, "i") end
    end
    return { "applied", g.n - g.ok }
  end,
}

local OUTCOMES = { success = "completed", failed = "failed", cancelled = "cancelled", expired = "expired", skipped = "skipped" }

-- Tell an edge how its upstream ended, before its turn has come. What is told must be what happened.
define {
  name    = "ff_resolve_dependency",
  args    = { "edge_id:str", "upstream_outcome:str", "at:id" },
  returns = { "satisfied", "impossible", "already_resolved" },
  errors  = { "execution_not_in_flow", "invalid_dependency", "deps_not_satisfied", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local outcome = OUTCOMES[a.upstream_outcome]
    if not outcome then return reply.reject("invalid_input", "upstream_outcome") end
    local x = record.load_all(p, a.at)
    local f = x and x.flow and flows.load(p, x.flow)
    if not f then return reply.reject("execution_not_in_flow", p.id_prefix .. a.at) end
    local up, down, row = graph.edge_of(p, f.id, a.edge_id)
    if not up or down ~= a.at or row.state == "g" then return reply.reject("invalid_dependency", up and "it is not applied to this execution" or "no such edge") end
    if row.state ~= "u" then
      fence.replayed(p)
      return { "already_resolved" }
    end
    local from = record.load_all(p, up)
    if not from or not state.is_terminal(from.state) or from.reopening then
      return reply.reject("deps_not_satisfied", p.id_prefix .. up .. " is " .. (from and from.state or "unknown"))
    end
    if from.state ~= outcome then return reply.reject("invalid_dependency", p.id_prefix .. up .. " is " .. from.state) end
    graph.resolve(p, f, up, outcome, down)
    flows.touch(p, f)
    return { graph.is_satisfied_by(row.kind, outcome) and "satisfied" or "impossible" }
  end,
}

-- Make an execution ready that waits for nothing more.
define {
  name    = "ff_promote_blocked_to_eligible",
  args    = { "execution_id:id" },
  returns = { "promoted" },
  errors  = { "execution_not_found", "terminal", "not_blocked_by_deps", "deps_not_satisfied" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if state.is_terminal(x.state) then return reply.reject("terminal", x.state) end
    if x.state ~= "blocked" or x.reason ~= "waiting_for_children" then return reply.reject("not_blocked_by_deps", x.reason or x.state) end
    local waits = graph.waits(p, x)
    if waits then return reply.reject("deps_not_satisfied", waits) end
    graph.promote(p, x, "promoted")
    return { "promoted" }
  end,
}

-- Whether its flow lets an execution run, as far as the graph goes.
define {
  name    = "ff_evaluate_flow_eligibility",
  args    = { "execution_id:id" },
  returns = { "status" },
  errors  = {},
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    if not x then return { "status", "not_found" } end
    if state.is_terminal(x.state) then
      local g = x.state == "skipped" and graph.read_group(redis.call("HGET", keys.incoming(p, x.id), "g"))
      return { "status", g and g.state == "i" and "impossible" or "terminal" }
    end
    if x.state == "active" or x.state == "granted" then return { "status", "owned" } end
    local f = x.flow and flows.load(p, x.flow)
    local stopped = f and f.policy and (f.policy == "cancel_all" or not x.started_at)
    if stopped or x.state == "suspended" or x.state == "delayed" then return { "status", "not_runnable" } end
    if x.state ~= "blocked" then return { "status", "eligible" } end
    if x.reason ~= "waiting_for_children" then return { "status", "not_runnable" } end
    return { "status", graph.waits(p, x) and "blocked_by_dependencies" or "eligible" }
  end,
}

local MODES = { cancel_remaining = "c", let_run = "l" }

-- A policy of the contract as a group has it: letter, k, c or l; nil when it is none.
local function read_policy(given)
  if type(given) ~= "table" then return nil end
  if given.kind == "all_of" then return "A", 0, "-" end
  local mode = MODES[policy.field(given, "on_satisfied") or "cancel_remaining"]
  if given.kind == "any_of" then return "O", 1, mode end
  local k = given.k
  if given.kind == "quorum" and type(k) == "number" and k >= 1 and k % 1 == 0 and k <= LIMITS.FLOW_CHUNK_EDGES_N then return "Q", k, mode end
end

-- Say how many of an execution's upstreams must do, before the first edge is applied.
define {
  name    = "ff_set_edge_group_policy",
  args    = { "flow_id:id", "downstream_execution_id:id", "policy:json" },
  returns = { "set", "already_set" },
  errors  = { "flow_not_found", "flow_already_terminal", "execution_not_in_flow", "invalid_dependency", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local letter, k, mode = read_policy(a.policy)
    if not letter or not mode then return reply.reject("invalid_input", "policy") end
    local f, refusal = growing(p, a.flow_id)
    if not f then return refusal end
    local x
    x, refusal = member(p, f.id, a.downstream_execution_id)
    if not x then return refusal end
    local key = keys.incoming(p, x.id)
    local g = graph.read_group(redis.call("HGET", key, "g"))
    if g and g.policy == letter and g.k == k and g.on == mode then
      fence.replayed(p)
      return { "already_set" }
    end
    if g and g.n > 0 then return reply.reject("invalid_dependency", g.n .. " edges are applied: their policy stands") end
    redis.call("HSET", key, "g", graph.group_text(graph.group(letter, k, mode, 0)))
    if not x.deps then record.write(p, x, "deps", "1") end
    flows.add(p, f, "revision", 1)
    return { "set" }
  end,
}

-- ---- looking -------------------------------------------------------------------------------------------------------

local STANDS = { g = "staged", u = "pending", S = "satisfied", s = "satisfied", I = "impossible" }

local function number_of(p, id) return tonumber(redis.call("HGET", keys.core(p, id), record.short("node")) or "0") end

-- An edge as the contract has it (EdgeSnapshot). Who knows the number of an end of it says so.
local function snapshot(p, fid, up, down, row, up_no, down_no)
  return { row.edge or graph.edge_id(fid, up_no or number_of(p, up), down_no or number_of(p, down)), p.id_prefix .. fid, p.id_prefix .. up, p.id_prefix .. down,
    graph.WORDS[row.kind], "all_required", row.ref or "", STANDS[row.state], row.at, "engine" }
end

define {
  name    = "ff_describe_edge",
  args    = { "flow_id:id", "edge_id:str" },
  returns = { "edge", "no_edge" },
  errors  = { "flow_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    if not flows.load(p, a.flow_id) then return reply.reject("flow_not_found") end
    local up, down, row = graph.edge_of(p, a.flow_id, a.edge_id)
    if not up then return { "no_edge" } end
    return { "edge", snapshot(p, a.flow_id, up, down, row) }
  end,
}

local LISTED_N = 500   -- edges of one page: some milliseconds

-- Edges of one member, in order: those that lead to it, or those that lead from it.
define {
  name    = "ff_list_edges",
  args    = { "flow_id:id", "execution_id:id", "direction:str", "cursor:str?", "limit:int" },
  returns = { "edges_page" },
  errors  = { "flow_not_found", "execution_not_in_flow", "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if a.direction ~= "incoming" and a.direction ~= "outgoing" then return reply.reject("invalid_input", "direction") end
    local after = read.int(a.cursor or "0")
    if not after or after < 0 then return reply.reject("invalid_offset", "cursor") end
    if not flows.load(p, a.flow_id) then return reply.reject("flow_not_found") end
    local x, refusal = member(p, a.flow_id, a.execution_id)
    if not x then return refusal end
    local out, last, most, number = {}, "", math.min(a.limit, LISTED_N), tonumber(x.node)
    if a.direction == "incoming" then
      local rows = graph.rows(p, x.id)
      for i = after + 1, math.min(#rows, after + most) do out[#out + 1] = snapshot(p, a.flow_id, rows[i].up, x.id, rows[i], nil, number) end
      if after + most < #rows then last = record.text(p, after + most) end
    else
      local downs = redis.call("LRANGE", keys.outgoing(p, x.id), after, after + most)
      for i = 1, math.min(#downs, most) do
        local text = redis.call("HGET", keys.incoming(p, downs[i]), x.id)
        if text then out[#out + 1] = snapshot(p, a.flow_id, x.id, downs[i], graph.read_row(text), number) end
      end
      if #downs > most then last = record.text(p, after + most) end
    end
    return { "edges_page", out, last }
  end,
}

local upstream
local function upstream_fields()
  upstream = {}
  local wanted = { "state", "task", "detail", "result", "result_kept", "result_encoding" }
  for i = 1, #wanted do upstream[i] = record.short(wanted[i]) end
  return upstream
end

-- What the upstreams of an execution came to, in the order of its inputs, from behind one on: a page is as large as an
-- answer and a few milliseconds allow, and says where the next one begins.
define {
  name    = "ff_read_upstreams",
  args    = { "execution_id:id", "after:int", "limit:int" },
  returns = { "upstreams" },
  errors  = { "execution_not_found", "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if redis.call("EXISTS", keys.core(p, a.execution_id)) == 0 then return reply.reject("execution_not_found") end
    local rows, out, bytes, last = graph.rows(p, a.execution_id), {}, 0, 0
    local most, wanted = math.min(a.limit, LIMITS.ROWS_N), upstream or upstream_fields()
    for i = 1, #rows do
      local row = rows[i]
      if row.kind ~= "c" and row.order > a.after then
        if #out == most or bytes > LIMITS.CLAIM_BYTES then
          last = out[#out][1]
          break
        end
        local key = keys.core(p, row.up)
        local r = redis.call("HMGET", key, unpack(wanted))
        if r[1] then
          local result = r[4] or r[5] and redis.call("GET", keys.result(p, row.up)) or nil
          bytes = bytes + #(result or "")
          out[#out + 1] = { row.order, p.id_prefix .. row.up, r[2], r[3] and redis.call("HGET", keys.detail(p, row.up), "label") or "",
            row.kind, r[1], row.state, result and 1 or 0, r[6] or "", result or "" }
        end
      end
    end
    return { "upstreams", out, last }
  end,
}
