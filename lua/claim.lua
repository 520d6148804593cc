-- claim.lua -- take work: a batch over partitions, or chained to completions.

-- Pop and lease up to `limit` jobs. Several partitions in one call on a standalone server.
define {
  name    = "ff_claim_batch",
  args    = { "lanes:json", "capability_sets:json", "limit:int", "claim_id:str", "worker_id:str", "worker_instance_id:str",
              "lease_ttl_ms:int", "park:str?" },
  returns = { "claimed" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  scope   = "many",
  run = function(ps, a) return claim.check(a) or claim.batch(ps, a, true) end,
}

local COMPLETED = { "completed", "completed" }

-- Complete jobs of one partition and claim more there: the fold that makes the figures.
define {
  name    = "ff_complete_many",
  args    = { "lanes:json", "capability_sets:json", "limit:int", "claim_id:str", "worker_id:str", "worker_instance_id:str",
              "lease_ttl_ms:int", "park:str?", "result_encoding:str?", "items:rows(execution_id:id,fence:fence,result:blob?)" },
  returns = { "completed_many" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local refusal = claim.check(a)
    if refusal then return refusal end
    if not attempt.fits(a.result_encoding) then return reply.reject("invalid_input", "result_encoding") end
    local items = {}
    for i = 1, #a.items do
      local row = a.items[i]
      if row.bad then
        items[i] = { "error", "invalid_input" }
      else
        local x = record.load_held(p, row.execution_id)
        refusal = fence.check(p, x, row.fence, "complete")
        if refusal == "replay" then
          fence.replayed(p)
          items[i] = { "replayed", x.state }
        elseif refusal then
          items[i] = { "error", refusal[2] }
        elseif row.result and #row.result > LIMITS.RESULT_BYTES then
          items[i] = { "error", "payload_too_large" }
        else
          attempt.complete(p, x, row.result, a.result_encoding)
          items[i] = x.state == "completed" and COMPLETED or { "completed", x.state }
        end
      end
    end
    if p.settling then
      -- What these ends have made ready may be claimed in the same call.
      graph.settle(p)
      queue.flush(p)
    end
    return { "completed_many", items, claim.batch({ p }, a) }
  end,
}


-- A bell reached a worker that has no room: ring another in its stead, for each queue that still has work.
define {
  name    = "ff_pass_bell",
  args    = { "lanes:json", "capability_sets:json" },
  returns = { "passed" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local refusal = claim.check_queues(a)
    if refusal then return refusal end
    for i = 1, #a.lanes do
      local lane = lanes.named(p, a.lanes[i], false)
      if lane and (lane.state == "active" or lane.state == "draining") then
        local sets = queue.served(p, lane, a.capability_sets)
        for c = 0, #sets do
          local cap = sets[c] or "-"
          if queue.any(p, lane, cap) then wake.ring(p, lane.no, cap) end
        end
      end
    end
    return { "passed" }
  end,
}
