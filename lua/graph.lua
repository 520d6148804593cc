-- graph.lua -- a whole graph in one submit: chunk by chunk, and the last one publishes it.
--
-- Nobody sees half a graph run. One that fits a call is alive when the call answers; of a larger one every member
-- stands blocked while the flow is staging, and the last chunk makes it live. A chunk is known by its number and the
-- digest of the whole: sent again it is answered again, ahead of its turn it is refused with the number that is wanted.
-- Members are numbered in the order they are sent, and depend on lower numbers only: such a graph has no cycle.

local NONE = {}
local NEAR = 4         -- numbers so close are read with what stands between them
local PUBLISHED_N = 1000   -- members looked at for roots by one call; a look costs a microsecond

-- ---- what is refused, before the first write -----------------------------------------------------------

local given = {}   -- a table, since a chunk may hold 200 locals

function given.refuse(code, number, what) return reply.reject(code, "node " .. number .. what) end

function given.call(a)
  if not names.is_name(a.namespace) then return reply.reject("invalid_input", "namespace") end
  if #a.flow_kind > LIMITS.NAME_BYTES or string.find(a.flow_kind, "%c") then return reply.reject("invalid_input", "flow_kind") end
  if #a.name > LIMITS.KEY_BYTES then return reply.reject("invalid_input", "name") end
  if submission.bad_digest(a.digest) then return reply.reject("invalid_input", "digest") end
  if a.chunk < 1 then return reply.reject("invalid_input", "chunk") end
  if a.node_total < 1 or a.edge_total < 0 then return reply.reject("invalid_input", "node_total, edge_total") end
  if a.node_total > LIMITS.FLOW_NODES_N then return reply.reject("flow_too_large", LIMITS.FLOW_NODES_N .. " nodes") end
  if a.edge_total > LIMITS.FLOW_EDGES_N then return reply.reject("flow_too_large", LIMITS.FLOW_EDGES_N .. " edges") end
  if #a.nodes == 0 then return reply.reject("invalid_input", "nodes") end
end

-- Whether this call is the next one of its graph: nil, or the answer.
function given.answer(p, a, f)
  if not f then
    local known, public = nil, nil
    if submission.is_keyed(a.flow_id) then known, public = submission.buried(p, a.flow_id, a.digest) end
    if known == "duplicate" then return { known, p.id_prefix .. a.flow_id, public } end
    if known then return reply.reject(known, p.id_prefix .. a.flow_id) end
    if a.chunk > 1 then return reply.reject("stale_graph_revision", 1) end
    return nil
  end
  if f.state == "purging" then return reply.reject("purging", p.id_prefix .. a.flow_id) end
  if f.digest ~= a.digest then return reply.reject("idempotency_conflict", p.id_prefix .. a.flow_id) end
  if f.state ~= "staging" then
    fence.replayed(p)
    return { "duplicate", p.id_prefix .. a.flow_id, flows.public(f) }
  end
  if a.chunk < f.chunk then
    fence.replayed(p)
    return { "staged", f.chunk }
  end
  if a.chunk > f.chunk then return reply.reject("stale_graph_revision", f.chunk) end
end

-- What a plan has, and whether it must.
local FIELDS = { { "execution_kind", "string", true }, { "lane_id", "string", true }, { "version", "number", true },
  { "priority", "number", true }, { "policy", "string" }, { "payload_encoding", "string" }, { "delay_until", "number" },
  { "execution_deadline_at", "number" } }

-- Tasks with their options: what the nodes of a call share. A refusal, or the list of { arguments, plan }.
function given.plans(p, a)
  if type(a.plans) ~= "table" or #a.plans == 0 or #a.plans > LIMITS.FLOW_PLANS_N then return reply.reject("invalid_input", "plans") end
  local plans = {}
  for i = 1, #a.plans do
    local raw = a.plans[i]
    if type(raw) ~= "table" then return reply.reject("invalid_input", "plan " .. i) end
    local b = { namespace = a.namespace, creator_identity = a.creator_identity }
    for j = 1, #FIELDS do
      local name, kind, must = unpack(FIELDS[j])
      local value = policy.field(raw, name)
      local sound = type(value) == kind and (kind == "string" or value % 1 == 0 and math.abs(value) <= 9007199254740991)
      if not sound and (must or value ~= nil) then return reply.reject("invalid_input", "plan " .. i .. ": " .. name) end
      b[name] = value
    end
    local refusal, plan = submission.plan(p, b)
    if refusal then return refusal end
    plan.flow = a.flow_id
    plans[i] = { b, plan }
  end
  return nil, plans
end

-- A node's edges: "12s,13a". A refusal, or numbers of upstreams and letters of kinds.
function given.edges(text, number)
  if text == "" then return nil, NONE, NONE end
  local ups, kinds, n, length, seen, wrong = {}, {}, 0, 0, nil, nil
  for digits, kind in string.gmatch(text .. ",", "(%d+)([saf]),") do
    local up = tonumber(digits)
    if n == 1 then seen = { [ups[1]] = true } end
    if up < 1 or up >= number or seen and seen[up] then wrong = wrong or string.sub(digits, 1, 12) end
    n, length = n + 1, length + #digits + 2
    ups[n], kinds[n] = up, kind
    if seen then seen[up] = true end
  end
  if length ~= #text + 1 then return given.refuse("invalid_dependency", number, ": edges are numbers with s, a or f behind") end
  if wrong then return given.refuse("invalid_dependency", number, " depends on " .. wrong .. ": it may on nodes sent before it, on each once") end
  return nil, ups, kinds
end

-- A node's group: "A", "O c", "Q 2 l", of n edges. Policy letter, k, what becomes of the others; nil when it is none.
function given.group(text, n)
  if text == "A" then return "A", 0, "-" end
  local rest = string.match(text, "^O ([cl])$")
  if rest and n > 0 then return "O", 1, rest end
  local k, others = string.match(text, "^Q (%d+) ([cl])$")
  k = k and tonumber(k)
  if k and k >= 1 and k <= n then return "Q", k, others end
end

-- One row. A refusal, or the node as it will be written: it is what submission.write wants to know of a member, too.
function given.node(row, number, plans, seen)
  local id, payload, label, tags = row.execution_id, row.payload, row.label, NONE
  if row.bad then return given.refuse("invalid_input", number, ": " .. row.bad) end
  if seen[id] then return given.refuse("invalid_input", number, " has the id of another one") end
  seen[id] = number
  if not plans[row.plan] then return given.refuse("invalid_input", number, ": plan") end
  if submission.bad_digest(row.digest) then return given.refuse("invalid_input", number, ": digest") end
  if payload and #payload > LIMITS.PAYLOAD_BYTES then return reply.reject("payload_too_large", #payload) end
  if label and (label == "" or #label > LIMITS.KEY_BYTES) then return given.refuse("invalid_input", number, ": label") end
  if row.tags then
    tags = names.unpack_pairs(row.tags)
    if not tags then return given.refuse("invalid_input", number, ": tags") end
    local refusal = names.check_tags(tags)
    if refusal then return refusal end
  end
  local admits, wrong = submission.admission(plans[row.plan][2], row.admission)
  if wrong then return given.refuse("invalid_input", number, ": " .. wrong) end
  local refusal, ups, kinds = given.edges(row.edges, number)
  if refusal then return refusal end
  local n = #ups
  if not payload and n == 0 then return given.refuse("invalid_input", number, " has no payload and no upstream whose result could be one") end
  if not given.group(row.group, n) then
    return given.refuse("invalid_dependency", number, ": group " .. string.sub(row.group, 1, 40) .. " of " .. n .. " edges")
  end
  return nil, { id = id, node = number, row = row, tags = tags, ups = ups, kinds = kinds, label = label, deps = n > 0, outs = false, admits = admits,
    blocked = true, inputs = not payload and (n == 1 and "1" or "*") or false }
end

-- All rows. A refusal, or the nodes; their edges and bytes counted.
function given.nodes(p, a, first, plans)
  local nodes, seen, ids, edges, bytes = {}, {}, {}, 0, 0
  for i = 1, #a.nodes do
    local refusal, node = given.node(a.nodes[i], first + i - 1, plans, seen)
    if refusal then return refusal end
    nodes[i], ids[i] = node, keys.core(p, node.id)
    edges, bytes = edges + #node.ups, bytes + #(node.row.payload or "")
  end
  if edges > LIMITS.FLOW_CHUNK_EDGES_N then return reply.reject("flow_too_large", LIMITS.FLOW_CHUNK_EDGES_N .. " edges a call") end
  if redis.call("EXISTS", unpack(ids)) > 0 then
    for i = 1, #ids do
      if redis.call("EXISTS", ids[i]) == 1 then return reply.reject("idempotency_conflict", p.id_prefix .. nodes[i].id) end
    end
  end
  return nil, nodes, edges, bytes
end

-- Ids of members that earlier chunks have brought, by number. nil when one is not there.
function given.earlier(p, fid, nodes, first)
  local wanted, seen, ids = {}, {}, {}
  for i = 1, #nodes do
    local ups = nodes[i].ups
    for u = 1, #ups do
      if ups[u] < first and not seen[ups[u]] then
        seen[ups[u]] = true
        wanted[#wanted + 1] = ups[u]
      end
    end
  end
  table.sort(wanted)
  local from = 1
  while from <= #wanted do
    local upto = from
    while wanted[upto + 1] and wanted[upto + 1] - wanted[upto] <= NEAR do upto = upto + 1 end
    local got = redis.call("ZRANGE", keys.members(p, fid), wanted[from], wanted[upto], "BYSCORE", "WITHSCORES")
    for i = 1, #got, 2 do ids[tonumber(got[i + 1])] = got[i] end
    from = upto + 1
  end
  for i = 1, #wanted do if not ids[wanted[i]] then return nil end end
  return ids, wanted
end

-- Whether the graph would be larger than it may, or than its first chunk said; a refusal if so.
function given.size(a, f, nodes, edges, bytes)
  local n, e = (f and f.members or 0) + #nodes, (f and f.edges or 0) + edges
  if n > a.node_total or e > a.edge_total or a.last and (n < a.node_total or e < a.edge_total) then
    return reply.reject("invalid_input", "node_total, edge_total: there are " .. n .. " nodes and " .. e .. " edges up to here")
  end
  if (f and f.bytes or 0) + bytes > LIMITS.FLOW_BYTES then return reply.reject("flow_too_large", LIMITS.FLOW_BYTES .. " bytes of payloads") end
end

-- ---- writing -------------------------------------------------------------------------------------------

local function begin(p, a, tags)
  local text = {}
  local function also(name, value) text[#text + 1] = name; text[#text + 1] = value end
  if a.flow_kind ~= "" then also("kind", a.flow_kind) end
  if a.namespace ~= "default" then also("ns", a.namespace) end
  if a.name ~= "" then also("name", a.name) end
  for i = 1, #tags, 2 do also("t:" .. tags[i], tags[i + 1]) end
  return flows.create(p, a.flow_id, a.last and "live" or "staging", { digest = a.digest }, text)
end

-- Nodes one after the other: rows and record of each. What they depend on is there, or comes by this call (and then its
-- record says so from the start). Groups and rows are alike in most graphs: their texts are made once.
local function write_nodes(p, f, plans, nodes, first, ids, live)
  local made, groups, rows = record.text(p, p.now), {}, { s = {}, a = {}, f = {} }
  for i = 1, #nodes do
    local ups = nodes[i].ups
    for u = 1, #ups do if ups[u] >= first then nodes[ups[u] - first + 1].outs = true end end
  end
  for i = 1, #nodes do
    local node = nodes[i]
    local row, ups, kinds, id = node.row, node.ups, node.kinds, node.id
    local n, plan = #ups, plans[row.plan]
    if n > 0 then
      local group = row.group .. n
      if not groups[group] then
        local letter, k, others = given.group(row.group, n)
        groups[group] = graph.group_text(graph.group(letter, k, others, n))
      end
      local flat = { "g", groups[group] }
      for u = 1, n do
        local known, here = rows[kinds[u]], nodes[ups[u] - first + 1]
        if not known[u] then known[u] = graph.row(u, kinds[u], "u", made) end
        local up = here and here.id or ids[ups[u]]
        flat[2 * u + 1], flat[2 * u + 2] = up, known[u]
        graph.link(p, up, id, here)
      end
      redis.call("HSET", keys.incoming(p, id), unpack(flat))
    end
    node.blocked = n > 0 or not live
    graph.number(p, f, id)
    submission.write(p, plan[1], plan[2], id, row.payload or "", false, row.digest, row.fairness_key, node.tags, node, node.admits)
  end
  if not f.lane then flows.set(p, f, "lane", plans[nodes[1].row.plan][2].lane.no) end
end

-- A member of an earlier chunk may have ended meanwhile (cancelled, out of time): whom it has now is told at once.
local function tell_ended(p, f, nodes, first, ids)
  local ended = {}
  for i = 1, #nodes do
    local ups = nodes[i].ups
    for u = 1, #ups do
      local id = ups[u] < first and ids[ups[u]]
      if id then
        if ended[id] == nil then
          local x = record.load_all(p, id)
          ended[id] = x and state.is_terminal(x.state) and x or false
        end
        local x = ended[id]
        if x and graph.resolve(p, f, id, x.state, nodes[i].id) then flows.handled(p, f, x, x.state) end
      end
    end
  end
end

-- Make roots ready, from a number on: as many as one call may, the rest by timer. What was decided while the graph was
-- not published is looked at again.
local function publish(p, f, from)
  local got, done = redis.call("ZRANGE", keys.members(p, f.id), from, from + PUBLISHED_N - 1, "BYSCORE", "WITHSCORES"), 0
  local touched = flows.over(f) > 0
  local most = math.min(LIMITS.EDGES_INLINE_N, p.edges_left or LIMITS.EDGES_INLINE_N)
  for i = 1, #got, 2 do
    if done >= most then
      timers.set(p, "publish", f.id .. " " .. got[i + 1], p.now)
      p.edges_left = (p.edges_left or LIMITS.EDGES_INLINE_N) - done
      return
    end
    local r = redis.call("HMGET", keys.core(p, got[i]), record.short("state"), record.short("deps"), record.short("lease_id"))
    -- One that has run waits for children it has spawned since.
    if r[1] == "blocked" and not r[3] and (touched or not r[2]) then
      local x = record.load_all(p, got[i])
      if r[2] then graph.look(p, f, x) else graph.act(p, f, x, "s") end
      done = done + 1
    end
  end
  p.edges_left = (p.edges_left or LIMITS.EDGES_INLINE_N) - done
  if from + PUBLISHED_N <= f.members then timers.set(p, "publish", f.id .. " " .. (from + PUBLISHED_N), p.now) end
end

due.on("publish", function(p, id)
  local fid, from = string.match(id, "^(%S+) (%d+)$")
  local f = fid and flows.load(p, fid)
  if f and f.state == "live" then publish(p, f, tonumber(from)) end
end)

define {
  name    = "ff_submit_flow",
  args    = { "flow_id:id", "namespace:str", "flow_kind:str", "name:str", "digest:blob", "chunk:int", "last:bool", "node_total:int",
              "edge_total:int", "tags:blob", "creator_identity:str", "plans:json",
              "nodes:rows(execution_id:id,plan:int,digest:blob,payload:blob?,fairness_key:str?,tags:blob?,label:str?,admission:str?,group:str,edges:str)" },
  returns = { "submitted", "staged", "duplicate" },
  errors  = { "idempotency_conflict", "purging", "stale_graph_revision", "invalid_input", "invalid_dependency", "flow_too_large",
              "lane_closed", "too_many_names", "payload_too_large", "invalid_policy_json", "invalid_capabilities", "invalid_tag_key",
              "store_full", "lane_full" },
  flags   = {},   -- refused over maxmemory: it admits new work
  run = function(p, a)
    local refusal = given.call(a)
    if refusal then return refusal end
    local f = flows.load(p, a.flow_id)
    local answer = given.answer(p, a, f) or partition.full(p)
    if answer then return answer end
    local tags = names.unpack_pairs(a.tags)
    if not tags then return reply.reject("invalid_input", "tags") end
    refusal = names.check_tags(tags)
    if refusal then return refusal end
    local plans, nodes, edges, bytes
    refusal, plans = given.plans(p, a)
    if refusal then return refusal end
    local first = (f and f.members or 0) + 1
    refusal, nodes, edges, bytes = given.nodes(p, a, first, plans)
    refusal = refusal or given.size(a, f, nodes, edges, bytes)
    if refusal then return refusal end
    local ids = given.earlier(p, a.flow_id, nodes, first)
    if not ids then return reply.reject("invalid_dependency", "a node of an earlier chunk is gone") end
    for i = 1, #plans do
      refusal = submission.open(p, plans[i][1], plans[i][2])
      if refusal then return refusal end
    end
    for i = 1, #nodes do
      refusal = lanes.full(p, plans[nodes[i].row.plan][2].lane, 1, #(nodes[i].row.payload or ""))
      if refusal then return refusal end
    end
    -- From here on nothing is refused.
    local live = a.last and not f
    f = f or begin(p, a, tags)
    write_nodes(p, f, plans, nodes, first, ids, live)
    flows.add(p, f, "edges", edges)
    flows.add(p, f, "bytes", bytes)
    flows.add(p, f, "revision", 1)
    if flows.over(f) > 0 then tell_ended(p, f, nodes, first, ids) end
    if not a.last then
      flows.set(p, f, "chunk", a.chunk + 1)
      timers.set(p, "staging", f.id, p.now + LIMITS.STAGING_MS)
      return { "staged", f.chunk }
    end
    if not live then
      timers.clear(p, "staging", f.id)
      flows.set(p, f, "state", "live")
      flows.look(p, f)
      queue.flush(p)   -- so that the members of this call are found, too
      graph.flush_links(p)   -- and whoever ends by being published knows who depends on it
      publish(p, f, 1)
    end
    return { "submitted", p.id_prefix .. f.id, flows.public(f), f.members }
  end,
}

-- Give up a graph of which some chunks have come: it is removed, in pieces, and its ids are free then.
define {
  name    = "ff_abort_flow",
  args    = { "flow_id:id", "digest:blob" },
  returns = { "aborted", "not_staging" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local f = flows.load(p, a.flow_id)
    if not f or f.state ~= "staging" or f.digest ~= a.digest then return { "not_staging" } end
    purge.begin(p, f)
    return { "aborted" }
  end,
}
