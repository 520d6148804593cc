-- spawn.lua -- children of a running execution: make one as a step of the journal, wait for some to end.
--
-- A child is a member of its parent's flow, with an edge of kind `child` to it: one that is waited for and never obeyed.
-- A parent that is no member becomes one, of a flow this makes for it.

-- ---- spawn ---------------------------------------------------------------------------------------------

local function check_spawn(a)
  local refusal = journal.check(a.step, "spawn", "ok", a.step_name, "")
  if refusal then return refusal end
  if a.task_version < 1 or a.task_version > LIMITS.VERSION_MAX then return reply.reject("invalid_input", "task_version") end
  if a.lease_ttl_ms ~= 0 and (a.lease_ttl_ms < LIMITS.LEASE_TTL_MIN_MS or a.lease_ttl_ms > LIMITS.LEASE_TTL_MAX_MS) then
    return reply.reject("invalid_input", "lease_ttl_ms")
  end
  if a.child_id == a.execution_id then return reply.reject("invalid_input", "child_id is the parent's") end
  if submission.bad_digest(a.digest) then return reply.reject("invalid_input", "digest") end
  if #a.input_payload > LIMITS.PAYLOAD_BYTES then return reply.reject("payload_too_large", #a.input_payload) end
  if a.label and (a.label == "" or #a.label > LIMITS.KEY_BYTES) then return reply.reject("invalid_input", "label") end
end

-- The lease's end, and how it is told: a call of the holder renews it.
local function renew(p, x, ttl_ms)
  local at = tonumber(x.at)
  local expires = ttl_ms == 0 and at or p.now + (policy.of(p, x).lease_ttl_ms or ttl_ms)
  if x.attempt_deadline_at and tonumber(x.attempt_deadline_at) < expires then expires = tonumber(x.attempt_deadline_at) end
  fence.heard(p, x)
  if expires > at then
    record.write(p, x, "at", expires)
    timers.extend(p, x)
  end
  return math.max(at, expires)
end

local function cancel_until(x) return x.cancel_until and tonumber(x.cancel_until) or 0 end

-- The flow the child comes to be in: the parent's, or the one that is named and may be new. A refusal, or the flow.
local function flow_of(p, x, a)
  if x.flow and x.flow ~= a.flow_id then return reply.reject("execution_already_in_flow", p.id_prefix .. x.flow) end
  local f = flows.load(p, a.flow_id)
  if not f then return nil, nil end
  local refusal = flows.closed(f)
  if refusal then return refusal end
  if f.state ~= "live" then return reply.reject("flow_already_terminal", "it is not published yet") end
  return nil, f
end

-- An execution that has the child's id already: a refusal, or its record (nil: the id is free).
local function taken(p, x, a)
  local full = p.id_prefix .. a.child_id
  local y = record.load_all(p, a.child_id)
  if not y then
    if submission.is_keyed(a.child_id) and submission.buried(p, a.child_id, a.digest) then return reply.reject("idempotency_conflict", full .. " is purged") end
    return nil, nil
  end
  if y.digest ~= a.digest then return reply.reject("idempotency_conflict", full) end
  if y.flow ~= a.flow_id then
    if y.flow then return reply.reject("execution_already_in_flow", p.id_prefix .. y.flow) end
    return reply.reject("idempotency_conflict", full .. " is no member of the flow")
  end
  local row = redis.call("HGET", keys.incoming(p, x.id), a.child_id)
  local is_child = row and graph.read_row(row).kind == "c"
  if row and not is_child or redis.call("HEXISTS", keys.incoming(p, a.child_id), x.id) == 1 then
    return reply.reject("idempotency_conflict", full .. " and its parent depend on each other already")
  end
  -- It would wait for others that wait for its parent, and its parent for it.
  if not is_child and not state.is_terminal(y.state) then
    local back = y.deps and cascade.leads_to(p, x.id, a.child_id)
    if back then return reply.reject("idempotency_conflict", full .. " waits for its parent already, by way of others") end
    if back == nil and y.deps then return reply.reject("flow_too_large", "more than " .. LIMITS.CYCLE_SEARCH_N .. " executions to look for a circle in") end
  end
  return nil, y, is_child
end

-- A member that is there already becomes a child; the edge of one that has ended is resolved at once.
local function adopt(p, f, x, y, abandon)
  if not y.outs then record.write(p, y, "outs", "1") end
  graph.add_child(p, f, x, y.id, abandon)
  if state.is_terminal(y.state) and graph.resolve(p, f, y.id, y.state, x.id) then flows.handled(p, f, y, y.state) end
end

-- Whether the flow may have what this adds; a refusal if not. y: the child that is there already.
local function too_large(f, x, a, y)
  local nodes, edges, bytes = f and f.members or 0, f and f.edges or 0, f and f.bytes or 0
  local more = (x.flow and 0 or 1) + (y and 0 or 1)
  if nodes + more > LIMITS.FLOW_NODES_N then return reply.reject("flow_too_large", LIMITS.FLOW_NODES_N .. " nodes") end
  if edges + 1 > LIMITS.FLOW_EDGES_N then return reply.reject("flow_too_large", LIMITS.FLOW_EDGES_N .. " edges") end
  if bytes + (y and 0 or #a.input_payload) > LIMITS.FLOW_BYTES then return reply.reject("flow_too_large", LIMITS.FLOW_BYTES .. " bytes of payloads") end
end

define {
  name    = "ff_spawn",
  args    = { "execution_id:id", "fence:fence", "step:str", "step_name:str", "task_version:int", "lease_ttl_ms:int", "flow_id:id", "child_id:id",
              "namespace:str", "lane_id:str", "execution_kind:str", "version:int", "input_payload:blob", "payload_encoding:str?",
              "priority:int", "creator_identity:str", "tags:blob", "policy:str?", "delay_until:int?", "execution_deadline_at:int?",
              "digest:blob", "fairness_key:str?", "label:str?", "abandon:bool", "admission:str?" },
  returns = { "spawned", "replayed" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "invalid_input", "payload_too_large",
              "journal_full", "invalid_tag_key", "invalid_policy_json", "invalid_capabilities", "lane_closed", "too_many_names",
              "store_full", "lane_full", "idempotency_conflict", "execution_already_in_flow", "flow_already_terminal", "flow_too_large" },
  flags   = {},   -- refused over maxmemory: it admits new work
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence) or check_spawn(a)
    if refusal then return refusal end
    local seq, kept, count, bytes = journal.look(p, x, a.step)
    if kept then
      local _, _, was = journal.unpack(kept)
      if was == "ok" or was == "fatal" then
        fence.replayed(p)
        return { "replayed", kept, renew(p, x, a.lease_ttl_ms), cancel_until(x) }
      end
    end
    local tags = names.unpack_pairs(a.tags)
    if not tags then return reply.reject("invalid_input", "tags") end
    local f, y, is_child, plan, admits, wrong
    refusal = names.check_tags(tags)
    if refusal then return refusal end
    refusal, f = flow_of(p, x, a)
    if refusal then return refusal end
    refusal, y, is_child = taken(p, x, a)
    refusal = refusal or too_large(f, x, a, y)
    if refusal then return refusal end
    local entry = journal.pack(p, x, a.step, "spawn", "ok", a.step_name, p.id_prefix .. a.child_id)
    refusal = journal.full(seq and count or count + 1, bytes + #entry - (kept and #kept or 0))
    if refusal then return refusal end
    if not y then
      refusal = partition.full(p)
      if refusal then return refusal end
      refusal, plan = submission.plan(p, a)
      if refusal then return refusal end
      admits, wrong = submission.admission(plan, a.admission)
      if wrong then return reply.reject("invalid_input", wrong) end
    end
    -- Whoever is being cancelled makes no more work: as where it would wait, it ends now.
    if attempt.cancelled_instead(p, x, "spawn") then return reply.reject("terminal", "cancelled") end
    refusal = not y and (submission.open(p, a, plan) or lanes.full(p, plan.lane, 1, #a.input_payload))
    if refusal then return refusal end
    -- From here on nothing is refused.
    f = f or flows.create(p, a.flow_id, "live", nil, a.namespace ~= "default" and { "ns", a.namespace } or nil)
    if not x.flow then graph.add_member(p, f, x) end
    if not y then
      plan.flow = f.id
      submission.write(p, a, plan, a.child_id, a.input_payload, false, a.digest, a.fairness_key, tags,
        { node = graph.number(p, f, a.child_id), outs = true, label = a.label }, admits)
      flows.add(p, f, "bytes", #a.input_payload)
    end
    if not y then graph.add_child(p, f, x, a.child_id, a.abandon)
    elseif not is_child then adopt(p, f, x, y, a.abandon) end
    -- Its edge goes back from the child: from now on a new edge may close a circle.
    if not f.uphill then flows.set(p, f, "uphill", "1") end
    local _, began = journal.write(p, x, a.step, seq, kept, count, bytes, entry, a.task_version)
    if began then record.write(p, x, "journal", began, "unpinned", false) end
    return { "spawned", p.id_prefix .. a.child_id, y and 0 or 1, renew(p, x, a.lease_ttl_ms), 0 }
  end,
}

-- ---- wait ----------------------------------------------------------------------------------------------

-- The state it came to, as the world calls it.
local function public(x)
  if state.is_terminal(x.state) then return x.state end
  return x.pending_outcome and "waiting" or "waiting_children"
end

-- Give the lease up until children have ended: those that are named, as many of them as are needed, or all that have not.
-- The same attempt goes on then, with what is left of its time.
define {
  name    = "ff_move_to_waiting_children",
  args    = { "execution_id:id", "fence:fence?", "attempt_index:int", "source:str", "need:int", "children:rows(execution_id:id)" },
  returns = { "moved", "already_satisfied" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "fence_required", "no_active_lease",
              "invalid_input", "invalid_dependency" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    local refusal = fence.resolve(p, x, a.fence, a.source, "children")
    if refusal == "replay" then
      fence.replayed(p)
      return { "moved", p.id_prefix .. x.id, public(x) }
    end
    if refusal then return refusal end
    if a.need < 0 or a.need > #a.children then return reply.reject("invalid_input", "need is 0 to the number of children named") end
    local named, seen = {}, {}
    for i = 1, #a.children do
      local id = a.children[i].execution_id
      if not id then return reply.reject("invalid_input", "execution_id of child " .. i) end
      if seen[id] then return reply.reject("invalid_input", "child " .. i .. " is named twice") end
      named[i], seen[id] = id, true
    end
    local holder = not a.fence and record.worker(x)
    local left, stranger = graph.await(p, x, #named > 0 and named or nil, a.need)
    if not left then return reply.reject("invalid_dependency", p.id_prefix .. stranger .. " is no child of it") end
    if left == 0 then
      if a.fence then fence.heard(p, x) end
      return { "already_satisfied" }
    end
    if x.cancel_until then
      redis.call("HDEL", keys.incoming(p, x.id), "w")   -- it waits for nothing any more
      attempt.cancelled_instead(p, x, "children")
    else
      state.move(p, x, "blocked", "waiting_for_children", "reason", "waiting_for_children", "next", "resumed",
        "attempt_left_ms", attempt.left_ms(p, x), "attempt_deadline_at", false, "ended_by", "children", "unseen", false, "moved_at", p.now)
    end
    if holder then wake.worker(p, holder, "revoked " .. p.id_prefix .. x.id) end
    return { "moved", p.id_prefix .. x.id, public(x) }
  end,
}
