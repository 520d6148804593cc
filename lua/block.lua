-- block.lua -- keep one execution from starting, and let it go again.
--
-- A blocked execution is out of its queue and keeps its turn. Which eligibility it shows follows from the
-- reason (ffcore/states.py).

local REASONS = { waiting_for_budget = true, waiting_for_quota = true, waiting_for_capable_worker = true, waiting_for_locality_match = true,
  paused_by_operator = true, paused_by_policy = true, paused_by_flow_cancel = true, waiting_for_children = true }

local function block(p, x, reason, detail)
  if detail ~= "" then record.describe(p, x, "blocking", names.cut(detail, LIMITS.REASON_BYTES)) end
  state.move(p, x, "blocked", reason, "reason", reason, "moved_at", p.now)
end

-- The contract's answer for a route that found no worker: a refusal is an outcome, because a scheduler
-- goes on to its next candidate.
define {
  name    = "ff_block_route",
  args    = { "execution_id:id", "lane_id:str", "reason_code:str", "reason_detail:str" },
  returns = { "blocked", "lua_rejected" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return { "lua_rejected", "execution_not_found" } end
    if not REASONS[a.reason_code] then return { "lua_rejected", "invalid_blocking_reason" } end
    if not state.is_queued(x.state) then return { "lua_rejected", "execution_not_eligible" } end
    block(p, x, a.reason_code, a.reason_detail)
    return { "blocked", p.id_prefix .. x.id }
  end,
}

define {
  name    = "ff_block_execution",
  args    = { "execution_id:id", "blocking_reason:str", "blocking_detail:str?" },
  returns = { "blocked" },
  errors  = { "execution_not_found", "terminal", "execution_not_eligible", "invalid_blocking_reason" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if not REASONS[a.blocking_reason] then return reply.reject("invalid_blocking_reason", a.blocking_reason) end
    if state.is_terminal(x.state) then return reply.reject("terminal", x.state) end
    if x.state == "blocked" and x.reason == a.blocking_reason then
      fence.replayed(p)
      return { "blocked" }
    end
    if not state.is_queued(x.state) then return reply.reject("execution_not_eligible", x.state) end
    block(p, x, a.blocking_reason, a.blocking_detail or "")
    return { "blocked" }
  end,
}

define {
  name    = "ff_unblock_execution",
  args    = { "execution_id:id", "expected_blocking_reason:str?" },
  returns = { "unblocked" },
  errors  = { "execution_not_found", "not_blocked", "invalid_blocking_reason", "deps_not_satisfied" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if x.state ~= "blocked" then return reply.reject("not_blocked", x.state) end
    if a.expected_blocking_reason and a.expected_blocking_reason ~= x.reason then return reply.reject("invalid_blocking_reason", x.reason) end
    if x.reason == "waiting_for_children" then
      local waits = graph.waits(p, x)
      if waits then return reply.reject("deps_not_satisfied", waits) end
    end
    -- Whoever lifts a pause so says that it may run. What else blocked it is no word about a pause.
    if x.paused and x.reason == "paused_by_operator" then record.write(p, x, "paused", false) end
    state.requeue(p, x, "unblocked", "reason", false)
    return { "unblocked" }
  end,
}

-- What a scheduler would look at: ready executions of a lane in claim order, without taking any.
define {
  name    = "ff_scan_eligible",
  args    = { "lane_id:str", "limit:int" },
  returns = { "eligible" },
  errors  = { "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local lane, ids = lanes.named(p, a.lane_id, false), {}
    if lane then
      local sources, all = queue.sources(p, lane), {}
      for i = 1, #sources do
        local got = redis.call("ZRANGE", sources[i][2], 0, a.limit - 1, "WITHSCORES")
        -- What has not moved yet to the order of now comes behind; its scores are of another kind.
        local rank = sources[i].rest and 1 or 0
        -- What is halted may not start.
        for j = 1, sources[i].shut and 0 or #got, 2 do all[#all + 1] = { tonumber(got[j + 1]), got[j], rank } end
      end
      table.sort(all, function(l, r)
        if l[3] ~= r[3] then return l[3] < r[3] end
        return l[1] < r[1] or (l[1] == r[1] and l[2] < r[2])
      end)
      for i = 1, math.min(#all, a.limit) do ids[i] = p.id_prefix .. all[i][2] end
    end
    return { "eligible", ids }
  end,
}
