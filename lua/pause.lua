-- pause.lua -- an operator keeps one execution from running, and lets it go on.
--
-- What is not running is blocked at once. What runs is flagged, and blocked when its lease ends without ending it; what is
-- suspended waits on, and is blocked when it would go on. ff_resume_execution takes a pause back.

define {
  name    = "ff_pause_execution",
  args    = { "execution_id:id", "reason:str" },
  returns = { "paused", "pause_pending", "already_paused" },
  errors  = { "execution_not_found", "terminal", "execution_not_eligible" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if state.is_terminal(x.state) then return reply.reject("terminal", x.state) end
    if x.pending_outcome then return reply.reject("execution_not_eligible", "it undoes what it has done") end
    if x.paused then
      fence.replayed(p)
      return { "already_paused" }
    end
    record.describe(p, x, "blocking", names.cut(a.reason, LIMITS.REASON_BYTES))
    local since = record.text(p, p.now)
    -- What waits for a worker that knows its task is claimed anew when it is resumed: no time runs out for it meanwhile.
    local unknown = x.state == "blocked" and redis.call("ZSCORE", keys.unknown(p), x.id)
    if state.is_queued(x.state) or x.state == "delayed" or unknown then
      record.write(p, x, "paused", since .. (x.state == "delayed" and " " .. x.reason .. " " .. x.at or ""))
      state.move(p, x, "blocked", "paused", "reason", "paused_by_operator", "moved_at", p.now)
      return { "paused" }
    end
    record.write(p, x, "paused", since)
    local runs = x.state == "active" or x.state == "granted"
    events.add(p, x, x.state, x.state, runs and "pause_pending" or "paused")
    return { runs and "pause_pending" or "paused" }
  end,
}

state.on_end(function(p, x) if x.paused then record.write(p, x, "paused", false) end end)
