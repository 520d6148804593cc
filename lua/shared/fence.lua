-- shared/fence.lua -- does the caller still hold the lease it names.
--
-- The fence is the whole triple lease_id, lease_epoch, attempt_id: an epoch alone is not enough, since a
-- failover that lost writes can hand the same epoch out twice. Refusals come in one order everywhere, so
-- that a worker can act on the word alone.

local fence = {}

-- nil when the holder may go on; "replay" when this operation already ended this lease (answer what it
-- answered then); otherwise a refusal. `operation` is the word stored in ended_by.
function fence.check(p, x, given, operation)
  if not x then return reply.reject("execution_not_found") end
  local same = given == record.fence(x)
  if state.is_terminal(x.state) then
    -- Renewals and progress name no operation: for them an end is always an end.
    if same and operation and (x.ended_by == operation or (operation == "complete" and x.state == "completed")) then return "replay" end
    return reply.reject("terminal", x.state)
  end
  if not same then return reply.reject("stale_lease", "held at epoch " .. (x.lease_epoch or "0")) end
  if x.state ~= "active" then
    if operation and x.ended_by == operation then return "replay" end
    if x.state == "revoked" then return reply.reject("lease_revoked", "taken back by an operator: stop the handler") end
    return reply.reject("stale_lease", x.state)
  end
  -- During a grace (the server was away) an expired lease is still good: its holder could not renew.
  if tonumber(x.at) <= p.now and p.grace_until < p.now then
    return reply.reject("lease_expired", x.at)
  end
end

-- A call that carries no fence acts for an operator, by its source; everything else must show one.
function fence.resolve(p, x, given, source, operation)
  if given then return fence.check(p, x, given, operation) end
  if not x then return reply.reject("execution_not_found") end
  if source ~= "operator_override" then return reply.reject("fence_required", "send lease_id, lease_epoch and attempt_id, or source operator_override") end
  if state.is_terminal(x.state) then return reply.reject("terminal", x.state) end
  if x.state ~= "active" then return reply.reject("no_active_lease", x.state) end
end

-- The holder has made itself heard: a lease that expires after this counts as a crash.
function fence.heard(p, x)
  if x.heard ~= x.lease_epoch then record.write(p, x, "heard", x.lease_epoch) end
end

-- An answer that repeats an earlier one. It writes, because a replay that writes nothing would make
-- WAIT report a write that is on no replica as safe.
function fence.replayed(p)
  p.replays_n = p.replays_n + 1
end
