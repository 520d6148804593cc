-- grant.lua -- the two-step claim of the contract: a short-lived permission, then the lease.
--
-- A granted execution is reserved for one worker and out of its queue, so an outstanding grant never
-- blocks other jobs; when it runs out, the execution goes back to its place. Workers of this engine
-- claim batches instead (claim.lua); schedulers of others use these.

local function split(x)
  return x.grant, x.at
end

-- What a worker lacks of what an execution requires, as text; nil if nothing.
local function missing(p, x, capabilities)
  if not x.cap then return nil end
  local has, lacks = {}, {}
  for i = 1, #capabilities do has[capabilities[i]] = true end
  local tokens = policy.field(policy.field(policy.of(p, x), "routing_requirements"), "required_capabilities") or {}
  for i = 1, #tokens do if not has[tokens[i]] then lacks[#lacks + 1] = tokens[i] end end
  if #lacks > 0 then
    table.sort(lacks)
    return table.concat(lacks, ",")
  end
end

local function check_grant(a)
  if a.grant_ttl_ms < 1 or a.grant_ttl_ms > LIMITS.GRANT_TTL_MAX_MS then return reply.reject("invalid_input", "grant_ttl_ms") end
  if a.worker_id == "" or #a.worker_id > LIMITS.GRANT_WORKER_BYTES or string.find(a.worker_id, "[%c%s]") then return reply.reject("invalid_input", "worker_id") end
  if type(a.worker_capabilities) ~= "table" or #a.worker_capabilities > LIMITS.CAPABILITIES_N then return reply.reject("invalid_capabilities", "worker") end
end

-- Why this execution may not start now although it is ready, or nil: the kill switch and the lane's state
-- hold for schedulers too.
local function stopped(p, x)
  local lane = lanes.of(p, x.lane)
  if lane.state == "paused" or lane.state == "disabled" then return "lane " .. lane.state end
  return p.holds_n > 0 and holds.of(p, x) or nil
end

local function reserve(p, x, a, why)
  local expires = p.now + a.grant_ttl_ms
  state.move(p, x, "granted", why, "grant", a.worker_id, "at", expires)
  return expires
end

due.on("grant", function(p, id)
  local x = record.load(p, id)
  if not x or x.state ~= "granted" then return end
  local _, until_ms = split(x)
  if tonumber(until_ms) > p.now then
    timers.set(p, "grant", id, tonumber(until_ms))
  else
    state.requeue(p, x, "grant_expired", "grant", false)
  end
end)

define {
  name    = "ff_issue_claim_grant",
  args    = { "execution_id:id", "lane_id:str", "worker_id:str", "worker_instance_id:str", "capability_hash:str?", "route_snapshot_json:str?",
              "admission_summary:str?", "worker_capabilities:json", "grant_ttl_ms:int" },
  returns = { "granted" },
  errors  = { "execution_not_found", "execution_not_eligible", "grant_already_exists", "capability_mismatch", "invalid_input", "invalid_capabilities" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    local refusal = check_grant(a)
    if refusal then return refusal end
    if x.state == "granted" then
      -- Asking again for what one already has is the same grant: a lost reply must not cost its ttl.
      local worker, until_ms = split(x)
      if worker ~= a.worker_id then return reply.reject("grant_already_exists", until_ms) end
      fence.replayed(p)
      return { "granted", p.id_prefix .. x.id }
    end
    if not state.is_queued(x.state) then return reply.reject("execution_not_eligible", x.state) end
    local why = stopped(p, x)
    if why then return reply.reject("execution_not_eligible", why) end
    local lacks = missing(p, x, a.worker_capabilities)
    if lacks then return reply.reject("capability_mismatch", lacks) end
    if x.flow and cascade.turned_away(p, x) then return reply.reject("execution_not_eligible", "its flow was cancelled") end
    reserve(p, x, a, "granted")
    return { "granted", p.id_prefix .. x.id }
  end,
}

-- Grant the best ready execution of a lane in this partition to a worker.
define {
  name    = "ff_claim_for_worker",
  args    = { "lane_id:str", "worker_id:str", "worker_instance_id:str", "worker_capabilities:json", "grant_ttl_ms:int" },
  returns = { "no_work", "granted" },
  errors  = { "invalid_input", "invalid_capabilities" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local refusal = check_grant(a)
    if refusal then return refusal end
    due.run(p, LIMITS.CLAIM_TICK_N)
    graph.settle(p)
    queue.flush(p)
    local lane = lanes.named(p, a.lane_id, false)
    if not lane or (lane.state ~= "active" and lane.state ~= "draining") then return { "no_work" } end
    -- The contract's capabilities are plain tokens: a set is served if all its tokens are there.
    local has, sets = {}, {}
    for i = 1, #a.worker_capabilities do has[a.worker_capabilities[i]] = true end
    if lane.revision > 0 then
      local known = redis.call("HGETALL", keys.caps(p, lane.no))
      for i = 1, #known, 2 do
        local all = true
        for token in string.gmatch(known[i + 1], "[^,]+") do all = all and has[token] end
        if all then sets[#sets + 1] = known[i] end
      end
      table.sort(sets)
    end
    -- As a claim does: what is held or past its deadline is taken care of, and the search goes on, bounded.
    local x
    for _ = 1, LIMITS.HOLD_SKIPS_N + 1 do
      local got = queue.pop(p, lane, sets, 1, p.now)
      if not got[1] then return { "no_work" } end
      x = record.load(p, got[1])
      if x and state.is_queued(x.state) then
        x.popped = true
        if not claim.turned_away(p, x) then break end
      end
      x = nil
    end
    if not x then return { "no_work" } end
    local expires = reserve(p, x, a, "granted")
    return { "granted", { p.id_prefix .. x.id, p.tag, keys.core(p, x.id), expires } }
  end,
}

-- The handle of the contract: which engine, how it came about, and the fence, opaque to callers.
local function handle(p, x, kind)
  return { "valkey", kind, p.id_prefix .. x.id .. " " .. record.fence(x) }
end

-- Take the lease a grant (or a reclaim grant) reserved. `resumed`: the caller expects an attempt to go on.
local function take(p, a, resumed)
  local x = record.load(p, a.execution_id)
  if not x then return nil, reply.reject("execution_not_found") end
  if state.is_terminal(x.state) then return nil, reply.reject("terminal", x.state) end
  if x.state == "active" then
    -- The same lease id again is the same call again.
    if x.lease_id == a.lease_id then
      fence.replayed(p)
      return x
    end
    return nil, reply.reject("lease_conflict", "held by " .. record.worker(x))
  end
  if a.lease_ttl_ms < LIMITS.LEASE_TTL_MIN_MS or a.lease_ttl_ms > LIMITS.LEASE_TTL_MAX_MS then return nil, reply.reject("invalid_input", "lease_ttl_ms") end
  if a.lease_id == "" or #a.lease_id > LIMITS.LEASE_ID_BYTES or string.find(a.lease_id, "[%c%s]") then return nil, reply.reject("invalid_input", "lease_id") end
  local instance = a.worker_instance_id
  if not names.is_instance(instance) then
    return nil, reply.reject("invalid_input", "worker_instance_id")
  end
  if x.state ~= "granted" then
    if state.is_queued(x.state) then return nil, reply.reject("invalid_claim_grant", "none") end
    return nil, reply.reject("execution_not_leaseable", x.state)
  end
  if resumed and x.next ~= "resumed" then return nil, reply.reject("not_a_resumed_execution", x.next) end
  if not resumed and x.next == "resumed" then return nil, reply.reject("use_claim_resumed_execution", "its attempt " .. (x.attempt or "0") .. " goes on") end
  local worker, until_ms = split(x)
  if worker ~= a.worker_id then return nil, reply.reject("invalid_claim_grant", "of another worker") end
  if tonumber(until_ms) <= p.now then return nil, reply.reject("claim_grant_expired", until_ms) end
  if x.flow and cascade.turned_away(p, x) then return nil, reply.reject("execution_not_leaseable", "its flow was cancelled") end
  if resumed then
    local left = a.remaining_attempt_timeout_ms
    if left and (left < 0 or left > LIMITS.SPAN_MAX_MS) then return nil, reply.reject("invalid_input", "remaining_attempt_timeout_ms") end
    if record.number(x, "attempt") ~= a.current_attempt_index then
      return nil, reply.reject("execution_not_eligible_for_attempt", x.attempt)
    end
    -- 0 says that there is no timeout, not that it is over.
    if left then record.write(p, x, "attempt_left_ms", left > 0 and left or false) end
    attempt.begin(p, x, a.lease_id, a.lease_ttl_ms, "claimed", nil, instance)
  else
    if a.attempt_id == "" or #a.attempt_id > LIMITS.LEASE_ID_BYTES or string.find(a.attempt_id, "[%c%s]") then
      return nil, reply.reject("invalid_input", "attempt_id")
    end
    if a.attempt_policy_json ~= "" and a.attempt_policy_json ~= "{}" then return nil, reply.reject("unsupported_policy", "attempt_policy_json") end
    local index = x.attempt and tonumber(x.attempt) + 1 or 0
    if a.expected_attempt_index ~= index then return nil, reply.reject("execution_not_eligible_for_attempt", index) end
    if a.attempt_timeout_ms and (a.attempt_timeout_ms < 1 or a.attempt_timeout_ms > LIMITS.SPAN_MAX_MS) then
      return nil, reply.reject("invalid_input", "attempt_timeout_ms")
    end
    if a.execution_deadline_at and (a.execution_deadline_at < 0 or a.execution_deadline_at > p.now + LIMITS.SPAN_MAX_MS) then
      return nil, reply.reject("invalid_input", "execution_deadline_at")
    end
    if a.execution_deadline_at and not x.deadline_at then
      -- A replay takes the same duration again.
      record.write(p, x, "deadline_at", a.execution_deadline_at, "deadline_ms", math.max(1, a.execution_deadline_at - p.now))
      timers.set(p, "deadline", x.id, a.execution_deadline_at)
    end
    attempt.begin(p, x, a.lease_id, a.lease_ttl_ms, "claimed", a.attempt_id, instance, a.attempt_timeout_ms)
  end
  return x
end


define {
  name    = "ff_claim_execution",
  args    = { "execution_id:id", "worker_id:str", "worker_instance_id:str", "lane_id:str", "lease_id:str", "lease_ttl_ms:int", "attempt_id:str",
              "expected_attempt_index:int", "attempt_policy_json:str", "attempt_timeout_ms:int?", "execution_deadline_at:int?" },
  returns = { "claimed" },
  errors  = { "execution_not_found", "terminal", "lease_conflict", "invalid_input", "invalid_claim_grant", "execution_not_leaseable",
              "claim_grant_expired", "execution_not_eligible_for_attempt", "use_claim_resumed_execution", "unsupported_policy" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x, refusal = take(p, a, false)
    if refusal then return refusal end
    return { "claimed", { p.id_prefix .. x.id, x.lease_id, tonumber(x.lease_epoch), tonumber(x.attempt), x.attempt_id or x.lease_id, x.next,
      tonumber(x.at), handle(p, x, x.next == "reclaim" and "reclaimed" or "fresh") } }
  end,
}

define {
  name    = "ff_claim_resumed_execution",
  args    = { "execution_id:id", "worker_id:str", "worker_instance_id:str", "lane_id:str", "lease_id:str", "lease_ttl_ms:int",
              "current_attempt_index:int", "remaining_attempt_timeout_ms:int?" },
  returns = { "claimed" },
  errors  = { "execution_not_found", "terminal", "lease_conflict", "invalid_input", "invalid_claim_grant", "execution_not_leaseable",
              "claim_grant_expired", "execution_not_eligible_for_attempt", "not_a_resumed_execution" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x, refusal = take(p, a, true)
    if refusal then return refusal end
    return { "claimed", { p.id_prefix .. x.id, x.lease_id, tonumber(x.lease_epoch), tonumber(x.attempt), x.attempt_id or x.lease_id,
      tonumber(x.at), handle(p, x, "resumed") } }
  end,
}

-- ---- reclaim: the same two steps for an execution whose lease was lost --------------------------------

local function reclaimable(x) return x.state == "reclaimable" or x.state == "revoked" or (x.state == "granted" and x.next == "reclaim") end

define {
  name    = "ff_issue_reclaim_grant",
  args    = { "execution_id:id", "worker_id:str", "worker_instance_id:str", "lane_id:str", "capability_hash:str?", "grant_ttl_ms:int",
              "route_snapshot_json:str?", "admission_summary:str?", "worker_capabilities:json" },
  returns = { "granted", "not_reclaimable", "reclaim_cap_exceeded" },
  errors  = { "execution_not_found", "grant_already_exists", "capability_mismatch", "invalid_input", "invalid_capabilities" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    local refusal = check_grant(a)
    if refusal then return refusal end
    local full = p.id_prefix .. x.id
    if x.state == "failed" and x.crashes and record.number(x, "crashes") > policy.max_reclaims(policy.of(p, x)) then
      return { "reclaim_cap_exceeded", full, record.number(x, "crashes") }
    end
    if not reclaimable(x) then return { "not_reclaimable", full, x.state } end
    local lane_name = lanes.name(p, x.lane)
    if x.state == "granted" then
      local worker, until_ms = split(x)
      if worker ~= a.worker_id then return reply.reject("grant_already_exists", until_ms) end
      fence.replayed(p)
      return { "granted", { full, p.tag, keys.core(p, x.id), tonumber(until_ms), lane_name } }
    end
    local why = stopped(p, x)
    if why then return { "not_reclaimable", full, why } end
    local lacks = missing(p, x, a.worker_capabilities)
    if lacks then return reply.reject("capability_mismatch", lacks) end
    if x.flow and cascade.turned_away(p, x) then return { "not_reclaimable", full, x.state } end
    local expires = reserve(p, x, a, "reclaim_granted")
    return { "granted", { full, p.tag, keys.core(p, x.id), expires, lane_name } }
  end,
}

define {
  name    = "ff_reclaim_execution",
  args    = { "execution_id:id", "worker_id:str", "worker_instance_id:str", "lane_id:str", "capability_hash:str?", "lease_id:str",
              "lease_ttl_ms:int", "attempt_id:str", "attempt_policy_json:str", "max_reclaim_count:int?", "old_worker_instance_id:str",
              "current_attempt_index:int" },
  returns = { "claimed", "not_reclaimable", "reclaim_cap_exceeded", "grant_not_found" },
  errors  = { "execution_not_found", "invalid_input", "claim_grant_expired", "invalid_claim_grant",
              "execution_not_eligible_for_attempt", "unsupported_policy" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    local full, crashes = p.id_prefix .. x.id, record.number(x, "crashes")
    if not (x.state == "active" and x.lease_id == a.lease_id) then
      if not reclaimable(x) then return { "not_reclaimable", full, x.state } end
      if x.state ~= "granted" then return { "grant_not_found", full } end
      -- A caller may lower the cap, never raise it; only whoever holds the grant may end the execution so.
      if a.max_reclaim_count and split(x) == a.worker_id and crashes > a.max_reclaim_count then
        attempt.poison(p, x, crashes)
        return { "reclaim_cap_exceeded", full, crashes }
      end
      if x.flow and cascade.turned_away(p, x) then return { "not_reclaimable", full, x.state } end
    end
    a.expected_attempt_index = a.current_attempt_index + 1
    local refusal
    x, refusal = take(p, a, false)
    if refusal then return refusal end
    return { "claimed", handle(p, x, "reclaimed") }
  end,
}
