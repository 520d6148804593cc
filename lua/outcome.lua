-- outcome.lua -- what a lease holder reports: complete, fail, progress.
--
-- Each may be sent again under the same fence: the first outcome is the answer, marked as a replay.

define {
  name    = "ff_complete_execution",
  args    = { "execution_id:id", "fence:fence?", "attempt_index:int", "result_payload:blob?", "result_encoding:str?", "source:str" },
  returns = { "completed" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "fence_required",
              "no_active_lease", "payload_too_large", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    local refusal = fence.resolve(p, x, a.fence, a.source, "complete")
    if refusal == "replay" then
      fence.replayed(p)
      return { "completed", p.id_prefix .. x.id, x.state, 1 }
    end
    if refusal then return refusal end
    if not attempt.fits(a.result_encoding) then return reply.reject("invalid_input", "result_encoding") end
    if a.result_payload and #a.result_payload > LIMITS.RESULT_BYTES then return reply.reject("payload_too_large", #a.result_payload) end
    attempt.complete(p, x, a.result_payload, a.result_encoding)
    return { "completed", p.id_prefix .. x.id, "completed", 0 }
  end,
}

-- A failed attempt: retried by the policy, its category and the holder's wish, or final.
define {
  name    = "ff_fail_execution",
  args    = { "execution_id:id", "fence:fence?", "attempt_index:int", "failure_reason:str", "failure_category:str",
              "retry_policy_json:str", "next_attempt_policy_json:str", "source:str", "retry_after_ms:int?", "failure_detail:str" },
  returns = { "retry_scheduled", "terminal_failed" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "fence_required",
              "no_active_lease", "invalid_policy_json", "invalid_input", "unsupported_policy" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    local refusal = fence.resolve(p, x, a.fence, a.source, "fail")
    if refusal == "replay" then
      fence.replayed(p)
      -- With compensations to run first the end was decided all the same.
      if state.is_terminal(x.state) or x.pending_outcome then return { "terminal_failed", 1 } end
      return { "retry_scheduled", tonumber(x.at or p.now), record.number(x, "attempt") + 1, 1 }
    end
    if refusal then return refusal end
    local given
    if a.retry_policy_json ~= "" then
      given = policy.decode(a.retry_policy_json)
      if not given then return reply.reject("invalid_policy_json", "retry_policy_json") end
    end
    if a.next_attempt_policy_json ~= "" then return reply.reject("unsupported_policy", "next_attempt_policy_json") end
    if a.failure_category == "" or #a.failure_category > LIMITS.CATEGORY_BYTES or string.find(a.failure_category, "[%c%s]") then
      return reply.reject("invalid_input", "failure_category")
    end
    if a.retry_after_ms and (a.retry_after_ms < 0 or a.retry_after_ms > LIMITS.SPAN_MAX_MS) then return reply.reject("invalid_input", "retry_after_ms") end
    local led_to = attempt.fail(p, x, a.failure_reason, a.failure_category, names.cut(a.failure_detail, LIMITS.REASON_BYTES),
      a.retry_after_ms, given, "fail")
    if led_to == "delayed" then return { "retry_scheduled", tonumber(x.at), record.number(x, "attempt") + 1, 0 } end
    return { "terminal_failed", 0 }
  end,
}

define {
  name    = "ff_update_progress",
  args    = { "execution_id:id", "lease_id:str", "lease_epoch:int", "attempt_id:str", "progress_pct:int?", "progress_message:str?" },
  returns = { "updated" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    local given = a.lease_id .. " " .. string.format("%.0f", a.lease_epoch) .. " " .. a.attempt_id
    local refusal = fence.check(p, x, given)
    if refusal then return refusal end
    if a.progress_pct and (a.progress_pct < 0 or a.progress_pct > 100) then return reply.reject("invalid_input", "progress_pct") end
    fence.heard(p, x)
    if a.progress_pct then record.write(p, x, "progress", a.progress_pct) end
    if a.progress_message then record.describe(p, x, "progress", names.cut(a.progress_message, LIMITS.REASON_BYTES)) end
    return { "updated" }
  end,
}
