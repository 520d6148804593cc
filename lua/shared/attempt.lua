-- shared/attempt.lua -- how a lease begins, and how an attempt ends without ending its execution.
--
-- An attempt is one try under one index. Its lease may change (suspend, hand back) without a new
-- attempt; a retry, a reclaim or a replay is a new one. lease_epoch = max(previous + 1, now): it rises
-- even across a failover that lost writes.

local attempt = {}
do -- helpers of this file; a chunk holds 200 locals

-- Lease a record to a worker. `attempt_id` nil: the lease id names a new attempt. The record's `next`
-- stays and says how this attempt came about.
function attempt.begin(p, x, lease_id, ttl_ms, why, attempt_id, worker, timeout_ms)
  local epoch = math.max(record.number(x, "lease_epoch") + 1, p.now)
  local pol = policy.of(p, x)
  local resumed = x.next == "resumed"
  local index, kept_id, deadline
  if resumed then
    index = x.attempt
    kept_id = x.attempt_id or x.lease_id
    deadline = x.attempt_left_ms and p.now + tonumber(x.attempt_left_ms)
  else
    index = x.attempt and tostring(tonumber(x.attempt) + 1) or "0"
    kept_id = attempt_id or lease_id
    local timeout = timeout_ms or pol.attempt_timeout_ms
    deadline = timeout and p.now + timeout
  end
  ttl_ms = pol.lease_ttl_ms or ttl_ms
  local expires = p.now + ttl_ms
  if deadline and deadline < expires then expires = deadline end
  if not x.attempt and not deadline and not worker and kept_id == lease_id and not (x.more and (x.reason or x.grant)) then
    -- The common case, a first attempt: nothing of an earlier one to clear.
    x.attempt, x.started_at = "0", record.text(p, epoch)
    state.step(p, x, "active", why, "lease_epoch", x.started_at, "lease_id", lease_id, "at", record.text(p, expires))
    return
  end
  state.move(p, x, "active", why,
    "lease_epoch", epoch, "lease_id", lease_id, "at", expires, "attempt", index,
    "attempt_id", kept_id ~= lease_id and kept_id or false, "worker", worker or false,
    "started_at", x.started_at or p.now, "attempt_started_at", (x.started_at and not resumed) and p.now or x.attempt_started_at or false,
    "attempt_deadline_at", deadline or false, "attempt_left_ms", false, "ended_by", x.ended_by and "-",
    "grant", false, "reason", false)
end

-- What the next attempt is: once an execution owes compensations, every attempt is one.
function attempt.kind(x, word) return x.pending_outcome and "compensation" or word end

-- Where an attempt began.
function attempt.started_at(x) return x.attempt_started_at or x.started_at or "0" end

-- Undo a claim that did not start: the attempt's index is not used up, and the next claim is of the same
-- kind as this one was. A resumed attempt keeps what is left of its time. Fields for the move that gives the lease up.
function attempt.unbegin(p, x)
  if x.next == "resumed" then return "attempt_left_ms", attempt.left_ms(p, x) end
  -- -1 says that there was a claim and no attempt yet; an absent index would read as the first one's.
  local index = record.number(x, "attempt") - 1
  return "attempt", tostring(index), "started_at", index >= 0 and x.started_at
end

-- Log an attempt that ended while its execution goes on; the last ATTEMPTS_N are kept.
function attempt.close(p, x, how, category)
  local key = keys.attempts(p, x.id)
  redis.call("RPUSH", key, table.concat({ x.attempt or "0", x.attempt_id or x.lease_id or "-", record.worker(x),
    attempt.started_at(x), p.now, how, category or "-" }, " "))
  redis.call("LTRIM", key, -LIMITS.ATTEMPTS_N, -1)
end

-- The attempt's remaining time, for a lease that is given up and taken again later.
function attempt.left_ms(p, x)
  return x.attempt_deadline_at and math.max(1, tonumber(x.attempt_deadline_at) - p.now) or false
end

-- Every end of a lease that is not an end of the execution passes here. A cancel that was requested
-- meanwhile wins: true means the execution has ended as cancelled.
function attempt.cancelled_instead(p, x, operation)
  if not x.cancel_until then return false end
  attempt.cancel_now(p, x, "cancel_requested", operation)
  return true
end

function attempt.cancel_now(p, x, why, operation)
  state.finish(p, x, "cancelled", why, "ended_by", operation or "cancel")
end

-- End an execution as cancelled now, whatever it does; its holder, if any, is told.
function attempt.cancel_at_once(p, x, reason, source)
  local holder = x.state == "active" and record.worker(x) or ""
  -- Whoever asked first said why; a holder that follows the request only carries it out.
  if not x.cancel_until or source == "operator_override" then
    record.describe(p, x, "cancel_reason", names.cut(reason, LIMITS.REASON_BYTES), "cancelled_by", names.cut(source, 64))
  end
  attempt.cancel_now(p, x, source, "cancel")
  wake.worker(p, holder, "cancel " .. p.id_prefix .. x.id)
end

-- Ask for a cancel of what has not ended and owes nothing: what does not run ends now, the holder of what does has a
-- grace. Answers until when, or nil when there is nothing to wait for; and whether it had been asked before.
function attempt.request_cancel(p, x, reason, source, grace_ms)
  if x.state ~= "active" then
    attempt.cancel_at_once(p, x, reason, source)
    return nil
  end
  if x.cancel_until then return tonumber(x.cancel_until), true end
  local until_ms = p.now + (grace_ms or LIMITS.CANCEL_GRACE_MS)
  record.describe(p, x, "cancel_reason", names.cut(reason, LIMITS.REASON_BYTES), "cancelled_by", names.cut(source, 64))
  record.write(p, x, "cancel_until", until_ms)
  timers.set(p, "cancel_grace", x.id, until_ms)
  events.add(p, x, x.state, x.state, "cancel_requested")
  wake.worker(p, record.worker(x), "cancel " .. p.id_prefix .. x.id)
  return until_ms
end

-- End an attempt as failed: a retry if policy and category allow, else the execution fails.
-- Answers the state word it led to.
local NEVER_RETRIED = { fatal = true, permanent = true, invalid_payload = true, invalid_result = true, result_too_large = true,
  unknown_task = true, poisoned = true, cancelled = true }

function attempt.fail(p, x, reason, category, detail, retry_after_ms, given, operation)
  local pol = policy.of(p, x)
  local retry = policy.field(given, "retry_policy") or (given and given.max_retries and given) or policy.field(pol, "retry_policy")
  local retries = record.number(x, "retries")
  local allowed = retry ~= nil and not NEVER_RETRIED[category] and retries < (policy.field(retry, "max_retries") or 3)
  if allowed then
    local list = policy.field(retry, "retryable_categories")
    if type(list) == "table" and #list > 0 then
      allowed = false
      for i = 1, #list do if list[i] == category then allowed = true end end
    end
  end
  -- During a cancel's grace the holder's final failure still wins; a retry, or a failure nobody reported, does not.
  if (allowed or operation ~= "fail") and attempt.cancelled_instead(p, x, operation) then return "cancelled" end
  record.describe(p, x, "reason", names.cut(reason, LIMITS.REASON_BYTES), "category", category, "traceback", detail)
  if not allowed then
    state.finish(p, x, "failed", category, "ended_by", operation or false)
    return "failed"
  end
  attempt.close(p, x, "ended_failure", category)
  local due = p.now + (retry_after_ms or policy.backoff_ms(retry, retries, x.id))
  state.move(p, x, "delayed", category, "reason", "waiting_for_retry_backoff", "next", attempt.kind(x, "retry"), "at", due, "retries", retries + 1,
    "attempt_deadline_at", false, "ended_by", operation or false, "moved_at", p.now, "hand_backs", false,
    "unseen", false)   -- the holder was heard: the next silence is the first in its row again
  return "delayed"
end

-- A lease ran out. Heard of since it was taken: a crash. Not heard of: the reply that carried it may have
-- been lost, so the first in a row counts nothing.
function attempt.expire_lease(p, x)
  if attempt.cancelled_instead(p, x) then return "cancelled" end
  if x.attempt_deadline_at and tonumber(x.attempt_deadline_at) <= p.now then
    return attempt.fail(p, x, "the attempt ran out of time", "timeout", "")
  end
  local crashes, unseen = record.number(x, "crashes"), record.number(x, "unseen")
  if x.heard == x.lease_epoch then
    crashes, unseen = crashes + 1, 0
  else
    unseen = unseen + 1
    if unseen > 1 then crashes = crashes + 1 end
    -- Nobody's code is known to have begun it: as in its first attempt, any version of its task may run it.
    if x.attempt == "0" and x.next == "initial" and not x.journal then record.write(p, x, "unpinned", "1") end
  end
  return attempt.interrupt(p, x, "reclaimable", "lease_expired", crashes, unseen)
end

-- End an execution that crashes its workers.
function attempt.poison(p, x, crashes)
  record.describe(p, x, "reason", "its workers crashed " .. crashes .. " times", "category", "poisoned", "traceback", "")
  state.finish(p, x, "failed", "poisoned", "crashes", crashes)
end

-- Put an interrupted execution back to its queue, or end it when it has crashed too often.
function attempt.interrupt(p, x, to, why, crashes, unseen)
  local cap = policy.max_reclaims(policy.of(p, x))
  if crashes > cap then
    attempt.poison(p, x, crashes)
    return "failed"
  end
  attempt.close(p, x, "interrupted_reclaimed", why)
  if x.pending_outcome then to = "ready" end   -- whoever claims it next compensates; there is no attempt to take over
  state.move(p, x, to, why, "next", attempt.kind(x, "reclaim"), "turn", queue.turn(p, x, false), "moved_at", p.now,
    "crashes", crashes > 0 and crashes or false, "unseen", unseen > 0 and unseen or false, "attempt_deadline_at", false, "attempt_left_ms", false)
  return to
end

-- Whether a result's encoding is a name (or absent).
function attempt.fits(encoding)
  return not encoding or (#encoding <= LIMITS.NAME_BYTES and encoding ~= "" and not string.find(encoding, "[%c%s]"))
end

-- What a run before this one returned, kept for those that depend on it until there is something else to say.
function attempt.drop_result(p, x)
  if x.result_kept then redis.call("UNLINK", keys.result(p, x.id)) end
  if x.result or x.result_kept or x.result_encoding then record.write(p, x, "result", false, "result_kept", false, "result_encoding", false) end
end

state.on_end(function(p, x, outcome) if x.outs and x.replays and outcome ~= "completed" then attempt.drop_result(p, x) end end)

-- Store a result and end the execution. The caller has checked the fence and the size.
function attempt.complete(p, x, result, encoding)
  -- A compensation attempt has nothing to say of the execution's result: its end is the one that was pending.
  if x.pending_outcome then return state.finish(p, x, x.pending_outcome) end
  if x.replays then attempt.drop_result(p, x) end
  if encoding then record.write(p, x, "result_encoding", encoding) end
  if not result then
    -- Nothing to keep: a result of null reads back the same.
    state.finish(p, x, "completed")
  elseif #result <= LIMITS.SHORT_RESULT_BYTES then
    state.finish(p, x, "completed", nil, "result", result)
  else
    redis.call("SET", keys.result(p, x.id), result)
    state.finish(p, x, "completed", nil, "result_kept", "1")
  end
end

end
