-- lease.lua -- who owns a running attempt, and until when: renew, expire, revoke.
--
-- A lease is a holder and an epoch. The epoch rises each time an execution changes hands and never falls,
-- so a write that carries an old one comes from a worker that has already lost the job.

-- Extend one lease. The attempt's timeout bounds it; the epoch does not change, so a handle taken before
-- the renewal is good after it. Answers the new expiry, or a refusal.
local function renew(p, x, given, ttl_ms)
  local refusal = fence.check(p, x, given)
  if refusal then return nil, refusal end
  ttl_ms = policy.of(p, x).lease_ttl_ms or ttl_ms
  local expires = p.now + ttl_ms
  if x.attempt_deadline_at and tonumber(x.attempt_deadline_at) < expires then expires = tonumber(x.attempt_deadline_at) end
  -- Heard from its holder: a lease that runs out after this counts as a crash.
  if x.heard == x.lease_epoch then record.write(p, x, "at", expires) else record.write(p, x, "at", expires, "heard", x.lease_epoch) end
  timers.extend(p, x)
  return expires
end

local function bad_ttl(ttl_ms) return ttl_ms < LIMITS.LEASE_TTL_MIN_MS or ttl_ms > LIMITS.LEASE_TTL_MAX_MS end

define {
  name    = "ff_renew_lease",
  args    = { "execution_id:id", "attempt_index:int", "fence:fence?", "lease_ttl_ms:int", "lease_history_grace_ms:int" },
  returns = { "renewed" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "fence_required", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not a.fence then return x and reply.reject("fence_required", "send lease_id, lease_epoch and attempt_id") or reply.reject("execution_not_found") end
    if bad_ttl(a.lease_ttl_ms) then return reply.reject("invalid_input", "lease_ttl_ms") end
    local expires, refusal = renew(p, x, a.fence, a.lease_ttl_ms)
    if refusal then return refusal end
    return { "renewed", expires }
  end,
}

-- The renewal thread's call: all leases a worker holds in this partition. Cancel requests ride along.
define {
  name    = "ff_renew_many",
  args    = { "lease_ttl_ms:int", "items:rows(execution_id:id,fence:fence)" },
  returns = { "renewed_many" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if bad_ttl(a.lease_ttl_ms) then return reply.reject("invalid_input", "lease_ttl_ms") end
    local items = {}
    for i = 1, #a.items do
      local row = a.items[i]
      if row.bad then
        items[i] = { "error", "invalid_input", 0 }
      else
        local x = record.load(p, row.execution_id)
        local expires, refusal = renew(p, x, row.fence, a.lease_ttl_ms)
        if refusal then items[i] = { "error", refusal[2], 0 }
        else items[i] = { "renewed", x.cancel_until and "cancel:" .. x.cancel_until or "", expires } end
      end
    end
    return { "renewed_many", p.now, items }
  end,
}

-- What the lease timer does, asked for by hand: an expired lease goes back to its queue.
define {
  name    = "ff_mark_lease_expired",
  args    = { "execution_id:id" },
  returns = { "marked_expired", "already_satisfied" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return { "already_satisfied", "execution_not_found" } end
    if x.state ~= "active" then return { "already_satisfied", "not_active" } end
    if tonumber(x.at) > p.now then return { "already_satisfied", "not_yet_expired" } end
    if p.grace_until >= p.now then return { "already_satisfied", "grace" } end
    attempt.expire_lease(p, x)
    return { "marked_expired" }
  end,
}

-- Take a lease away from a worker that should no longer hold it. The job is claimable at once; nothing counts.
define {
  name    = "ff_revoke_lease",
  args    = { "execution_id:id", "expected_lease_id:str?", "worker_instance_id:str", "reason:str" },
  returns = { "revoked", "already_satisfied" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "no_active_lease" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if state.is_terminal(x.state) then return reply.reject("terminal", x.state) end
    if x.state == "revoked" then return { "already_satisfied", "already_revoked" } end
    if x.state == "reclaimable" then return { "already_satisfied", "already_expired" } end
    if x.state ~= "active" then return reply.reject("no_active_lease", x.state) end
    if (a.expected_lease_id or "") ~= "" and a.expected_lease_id ~= x.lease_id then return reply.reject("stale_lease", x.lease_id) end
    local holder = record.worker(x)
    if a.worker_instance_id ~= "" and a.worker_instance_id ~= holder then return reply.reject("stale_lease", holder) end
    local lease_id, epoch = x.lease_id, x.lease_epoch
    if attempt.cancelled_instead(p, x) then return { "revoked", lease_id, epoch } end
    attempt.interrupt(p, x, "revoked", "revoked " .. names.cut(a.reason, 200), record.number(x, "crashes"), record.number(x, "unseen"))
    wake.worker(p, holder, "revoked " .. p.id_prefix .. x.id)
    return { "revoked", lease_id, epoch }
  end,
}
