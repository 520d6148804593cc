-- control.lua -- what changes an execution's course: cancel, delay, give back, expire, priority, replay, tags.

-- End now what does not run; ask the holder of what does. During the grace a completion or a final
-- failure still wins; every other end of the lease ends the execution as cancelled.
define {
  name    = "ff_cancel_execution",
  args    = { "execution_id:id", "reason:str", "source:str", "lease_id:str?", "lease_epoch:int?", "attempt_id:str?", "grace_ms:int?" },
  returns = { "cancelled", "cancel_requested", "already_terminal" },
  errors  = { "execution_not_found", "partial_fence_triple", "stale_lease", "lease_revoked", "lease_expired", "invalid_grace_ms" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    local full = p.id_prefix .. x.id
    local given = (a.lease_id and 1 or 0) + (a.lease_epoch and 1 or 0) + (a.attempt_id and 1 or 0)
    if given > 0 and given < 3 then return reply.reject("partial_fence_triple", "lease_id, lease_epoch and attempt_id: all three or none") end
    if a.grace_ms and (a.grace_ms < 0 or a.grace_ms > LIMITS.SPAN_MAX_MS) then
      return reply.reject("invalid_grace_ms", "0 to " .. string.format("%.0f", LIMITS.SPAN_MAX_MS))
    end
    if state.is_terminal(x.state) then
      if x.state == "cancelled" then
        fence.replayed(p)
        return { "cancelled", full, "cancelled" }
      end
      return { "already_terminal", full, x.state }
    end
    if x.pending_outcome and a.source ~= "operator_override" then
      -- It has been decided how this ends; what undoes it is not called off.
      fence.replayed(p)
      return { "cancel_requested", full, p.now }
    end
    if given == 3 then
      local refusal = fence.check(p, x, a.lease_id .. " " .. string.format("%.0f", a.lease_epoch) .. " " .. a.attempt_id, "cancel")
      if refusal then return refusal end
    elseif x.state == "active" and a.source ~= "operator_override" then
      local until_ms, repeated = attempt.request_cancel(p, x, a.reason, a.source, a.grace_ms)
      if repeated then fence.replayed(p) end
      return { "cancel_requested", full, until_ms }
    end
    attempt.cancel_at_once(p, x, a.reason, a.source)
    if x.pending_outcome then return { "cancel_requested", full, p.now } end
    return { "cancelled", full, x.state }
  end,
}

due.on("cancel_grace", function(p, id)
  local x = record.load(p, id)
  if x and x.cancel_until and tonumber(x.cancel_until) <= p.now and not state.is_terminal(x.state) then
    local holder = record.worker(x)
    attempt.cancel_now(p, x, "cancel_grace")
    wake.worker(p, holder, "cancel " .. p.id_prefix .. id)
  end
end)

-- Give the lease up until a time; the same attempt goes on then.
define {
  name    = "ff_delay_execution",
  args    = { "execution_id:id", "fence:fence?", "attempt_index:int", "delay_until:int", "source:str" },
  returns = { "delayed" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "fence_required", "no_active_lease", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    local refusal = fence.resolve(p, x, a.fence, a.source, "delay")
    if refusal == "replay" then
      fence.replayed(p)
      return { "delayed", p.id_prefix .. x.id, "delayed" }
    end
    if refusal then return refusal end
    if a.delay_until < 0 or a.delay_until > p.now + LIMITS.SPAN_MAX_MS then return reply.reject("invalid_input", "delay_until") end
    if attempt.cancelled_instead(p, x, "delay") then return { "delayed", p.id_prefix .. x.id, x.state } end
    state.move(p, x, "delayed", "delay", "reason", "waiting_for_delay", "at", math.max(a.delay_until, p.now), "next", "resumed",
      "attempt_left_ms", attempt.left_ms(p, x), "attempt_deadline_at", false, "ended_by", "delay",
      "unseen", false, "moved_at", p.now)
    return { "delayed", p.id_prefix .. x.id, "delayed" }
  end,
}

due.on("delay", function(p, id)
  local x = record.load(p, id)
  if x and x.state == "delayed" and tonumber(x.at) <= p.now then
    state.move(p, x, "ready", "due", "reason", false, "turn", queue.turn(p, x, true), "eligible_at", p.now)
  end
end)

-- Give a claimed job back without an outcome. reason:
--   hand_back     the worker stops; the same attempt goes on elsewhere (100 in a row, the next is a crash)
--   refused       admission said no: back to its place, the attempt not used up
--   unknown_task  this worker does not know the task: blocked until one does, or failed after a while
define {
  name    = "ff_unclaim",
  args    = { "execution_id:id", "fence:fence", "reason:str" },
  returns = { "unclaimed" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence, "unclaim")
    if refusal == "replay" then
      fence.replayed(p)
      return { "unclaimed", p.id_prefix .. x.id, x.state }
    end
    if refusal then return refusal end
    if a.reason ~= "hand_back" and a.reason ~= "refused" and a.reason ~= "unknown_task" then return reply.reject("invalid_input", "reason") end
    if attempt.cancelled_instead(p, x, "unclaim") then return { "unclaimed", p.id_prefix .. x.id, x.state } end
    if a.reason == "hand_back" then
      local n = record.number(x, "hand_backs") + 1
      if n > LIMITS.HAND_BACKS_N then
        record.write(p, x, "hand_backs", false, "ended_by", "unclaim")
        attempt.interrupt(p, x, "reclaimable", "hand_backs", record.number(x, "crashes") + 1, 0)
      else
        state.move(p, x, "ready", "hand_back", "next", "resumed", "hand_backs", n, "turn", queue.turn(p, x, false), "unseen", false,
          "attempt_left_ms", attempt.left_ms(p, x), "attempt_deadline_at", false, "ended_by", "unclaim", "moved_at", p.now)
      end
    elseif a.reason == "refused" or state.stays_out(x, "ready") then
      -- A paused one is looked at again, for its task too, when it is resumed: nobody waits for a worker meanwhile.
      state.move(p, x, "ready", a.reason, "turn", queue.turn(p, x, false), "attempt_deadline_at", false, "unseen", false,
        "ended_by", "unclaim", "moved_at", p.now, attempt.unbegin(p, x))
    else
      state.move(p, x, "blocked", "unknown_task", "reason", "waiting_for_capable_worker", "attempt_deadline_at", false, "unseen", false,
        "ended_by", "unclaim", "moved_at", p.now, attempt.unbegin(p, x))
      redis.call("ZADD", keys.unknown(p), p.now, x.id)
      timers.set(p, "unknown_task", x.id, p.now + LIMITS.UNKNOWN_TASK_MS)
    end
    return { "unclaimed", p.id_prefix .. x.id, x.state }
  end,
}

due.on("unknown_task", function(p, id)
  redis.call("ZREM", keys.unknown(p), id)
  local x = record.load(p, id)
  if x and x.state == "blocked" and x.reason == "waiting_for_capable_worker" then
    record.describe(p, x, "reason", "no worker knows task " .. x.task, "category", "unknown_task", "traceback", "")
    state.finish(p, x, "failed", "unknown_task")
  end
end)

-- End by time. attempt_timeout is a failure that may be retried; any other reason is final.
define {
  name    = "ff_expire_execution",
  args    = { "execution_id:id", "expire_reason:str" },
  returns = { "expired", "already_terminal", "retry_scheduled" },
  errors  = { "execution_not_found", "no_active_lease", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if a.expire_reason == "" or #a.expire_reason > LIMITS.CATEGORY_BYTES or string.find(a.expire_reason, "%c") then return reply.reject("invalid_input", "expire_reason") end
    if state.is_terminal(x.state) then return { "already_terminal" } end
    if a.expire_reason == "attempt_timeout" then
      if x.state ~= "active" then return reply.reject("no_active_lease", x.state) end
      if attempt.cancelled_instead(p, x) then return { "expired", p.id_prefix .. x.id } end
      if attempt.fail(p, x, "the attempt ran out of time", "timeout", "") == "delayed" then
        return { "retry_scheduled", tonumber(x.at), record.number(x, "attempt") + 1 }
      end
      return { "expired", p.id_prefix .. x.id }
    end
    local holder = x.state == "active" and record.worker(x) or ""
    -- As with the deadline: a cancel that was asked for first is what ends it.
    if not attempt.cancelled_instead(p, x) then state.finish(p, x, "expired", a.expire_reason) end
    wake.worker(p, holder, "cancel " .. p.id_prefix .. x.id)
    return { "expired", p.id_prefix .. x.id }
  end,
}

due.on("deadline", function(p, id)
  local x = record.load(p, id)
  if x and not state.is_terminal(x.state) and x.deadline_at and tonumber(x.deadline_at) <= p.now and x.next ~= "compensation" then
    local holder = x.state == "active" and record.worker(x) or ""
    -- A cancel that was asked for first is what ends it, also when the deadline comes before its grace is over.
    if not attempt.cancelled_instead(p, x) then state.finish(p, x, "expired", "execution_deadline") end
    wake.worker(p, holder, "cancel " .. p.id_prefix .. id)
  end
end)

-- A new priority takes effect at once for what is ready, later for everything else; the turn stays.
define {
  name    = "ff_change_priority",
  args    = { "execution_id:id", "new_priority:int", "lane_id:str" },
  returns = { "changed" },
  errors  = { "execution_not_found", "terminal", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if a.new_priority < LIMITS.PRIORITY_MIN or a.new_priority > LIMITS.PRIORITY_MAX then return reply.reject("invalid_input", "new_priority") end
    if a.lane_id ~= "" and a.lane_id ~= lanes.name(p, x.lane) then return reply.reject("invalid_input", "lane_id") end
    if state.is_terminal(x.state) then return reply.reject("terminal", x.state) end
    if a.new_priority ~= record.number(x, "priority") then
      record.write(p, x, "priority", a.new_priority ~= 0 and a.new_priority or false, "moved_at", p.now)
      if state.is_queued(x.state) then
        queue.leave(p, x)
        queue.enter(p, x)
      end
      events.add(p, x, x.state, x.state, "priority " .. a.new_priority)
    end
    return { "changed", p.id_prefix .. x.id }
  end,
}

-- How the last attempt of an execution ended, in the contract's words (AttemptLifecycle).
local ENDED = { completed = "ended_success", cancelled = "ended_cancelled" }

-- Run a finished execution again, clean: counters, failure, result and deadline start anew. `resume` keeps
-- finished steps, `fresh` forgets them and the pinned version.
define {
  name    = "ff_replay_execution",
  args    = { "execution_id:id", "mode:str" },
  returns = { "replayed" },
  errors  = { "execution_not_found", "execution_not_terminal", "max_replays_exhausted", "invalid_input", "flow_already_terminal",
              "deps_not_satisfied" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    if not x then
      local tomb = redis.call("HEXISTS", keys.tombs(p, a.execution_id), a.execution_id) == 1
      return reply.reject("execution_not_found", tomb and "purged" or "")
    end
    if a.mode ~= "resume" and a.mode ~= "fresh" then return reply.reject("invalid_input", "mode is resume or fresh") end
    if not state.is_terminal(x.state) then return reply.reject("execution_not_terminal", x.state) end
    local cap = policy.field(policy.of(p, x), "max_replay_count") or 10
    if record.number(x, "replays") >= cap then return reply.reject("max_replays_exhausted", cap) end
    local refusal = x.flow and cascade.check_replay(p, x)
    if refusal then return refusal end
    local logged = redis.call("LRANGE", keys.attempts(p, x.id), -1, -1)[1]
    if a.mode == "fresh" then
      journal.restart(p, x)
    else
      if x.attempt then journal.reopen(p, x) end
      if x.waitpoints then waitpoints.reopen(p, x) end
      if x.suspension then suspension.reopen(p, x) end
    end
    -- What others work with stays until there is something else.
    local keeps = x.outs and x.state == "completed"
    if x.result_kept and not keeps then redis.call("UNLINK", keys.result(p, x.id)) end
    if x.detail then redis.call("HDEL", keys.detail(p, x.id), "reason", "category", "traceback", "cancel_reason", "cancelled_by", "progress") end
    -- The last attempt is logged now, unless it was when its lease ended (a retry, a lost lease) and the end came later.
    if x.attempt and x.attempt ~= "-1" and not (logged and string.match(logged, "^%S+") == x.attempt) then
      attempt.close(p, x, ENDED[x.state] or "ended_failure", "replayed")
    end
    local deadline = cascade.unend(p, x)
    -- A skipped member goes on to wait where its upstreams have not all ended yet.
    local waits = x.flow and cascade.regroup(p, x)
    state.move(p, x, waits and "blocked" or "ready", "replay " .. a.mode, "next", "replay", "replays", record.number(x, "replays") + 1,
      "run", record.number(x, "run") + 1, "reason", waits and "waiting_for_children", "turn", queue.turn(p, x, true), "eligible_at", p.now,
      "deadline_at", deadline or false, "result", keeps and x.result, "result_kept", keeps and x.result_kept,
      "result_encoding", keeps and x.result_encoding, "retries", false, "crashes", false, "unseen", false, "hand_backs", false,
      "ended_by", false, "progress", false, "attempt_deadline_at", false, "attempt_left_ms", false, "size", false, "moved_at", p.now)
    if x.flow then cascade.replayed(p, x, a.mode) end
    return { "replayed", waits and "waiting_children" or "waiting" }
  end,
}

-- Set tags (their keys carry a namespace: "shop.tenant"); an empty value removes one.
define {
  name    = "ff_set_execution_tags",
  args    = { "execution_id:id", "tags:blob" },
  returns = { "ok" },
  errors  = { "execution_not_found", "invalid_tag_key", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    local given = names.unpack_pairs(a.tags)
    if not given then return reply.reject("invalid_input", "tags") end
    local refusal = names.check_tags(given)
    if refusal then return refusal end
    local kept, flat = {}, record.tags(p, x)
    local n, set, gone = #flat / 2, {}, {}
    for i = 1, #flat, 2 do kept[flat[i]] = true end
    for i = 1, #given, 2 do
      local name, value = given[i], given[i + 1]
      if value == "" then
        gone[#gone + 1] = "t:" .. name
        if kept[name] then n = n - 1 end
      else
        set[#set + 1], set[#set + 2] = "t:" .. name, value
        if not kept[name] then n = n + 1 end
      end
      kept[name] = value ~= ""
    end
    if n > LIMITS.TAGS_N then return reply.reject("invalid_input", "more than " .. LIMITS.TAGS_N .. " tags") end
    if #set > 0 then record.describe(p, x, unpack(set)) end
    if #gone > 0 then redis.call("HDEL", keys.detail(p, x.id), unpack(gone)) end
    return { "ok", n }
  end,
}
