-- shared/claim.lua -- pop ready executions and lease them to a worker; the heart of the engine.
--
-- A claim looks only at queues its worker can serve. It remembers its last answer per claim slot, so a
-- worker whose reply was lost asks again with the same claim_id and gets the same leases, as far as they
-- are still held; otherwise a lost reply would lease jobs to nobody.

local claim = {}
do -- helpers of this file; a chunk holds 200 locals

-- Lanes and sets a caller names. Parking interns the names and makes keys of the digests, so both must be what
-- a submit would have made: no user text reaches a key, no lane is called like the table's own rows ("#1").
function claim.check_queues(a)
  if type(a.lanes) ~= "table" or #a.lanes > LIMITS.TAGS_N then return reply.reject("invalid_input", "lanes") end
  for i = 1, #a.lanes do
    local name = a.lanes[i]
    if type(name) ~= "string" or not names.is_lane(name) then return reply.reject("invalid_input", "lanes") end
  end
  local sets = a.capability_sets
  if type(sets) ~= "table" or #sets > LIMITS.CAP_SETS_N * LIMITS.TAGS_N then return reply.reject("invalid_input", "capability_sets") end
  for i = 1, #sets do
    if type(sets[i]) ~= "string" or #sets[i] ~= 12 or string.find(sets[i], "%X") then return reply.reject("invalid_input", "capability_sets") end
  end
end

function claim.check(a)
  if a.limit < 0 or a.limit > LIMITS.ROWS_N then return reply.reject("invalid_input", "limit") end
  if a.lease_ttl_ms < LIMITS.LEASE_TTL_MIN_MS or a.lease_ttl_ms > LIMITS.LEASE_TTL_MAX_MS then return reply.reject("invalid_input", "lease_ttl_ms") end
  if not names.is_instance(a.worker_instance_id) then
    return reply.reject("invalid_input", "worker_instance_id")
  end
  local instance = string.match(a.claim_id, "^(.*)%.%w+%.%d+$")
  if instance ~= a.worker_instance_id or #a.claim_id > LIMITS.LEASE_ID_BYTES - 4 then return reply.reject("invalid_input", "claim_id") end
  local refusal = claim.check_queues(a)
  if refusal then return refusal end
  if #a.lanes == 0 then return reply.reject("invalid_input", "lanes") end
  if a.park and not names.is_instance(a.park) then return reply.reject("invalid_input", "park") end
end

-- One leased job as the worker gets it (ffcore/contracts/batch.py, ClaimedJob): what never holds a space
-- in one text, then what may hold anything, and what it has recorded if there is any; and what counts towards the
-- bound of one answer. As 23 values of an answer the same would cost 6 % of the claim.
local function answer(p, x, lane_name, payload)
  local rare, head, given, admits
  local bytes = #payload
  if x.more then
    if x.journal or x.unpinned then
      local size
      head, size = journal.head(p, x)
      bytes = bytes + size
    end
    if x.inputs then
      local size
      given, size = inputs.of(p, x)
      bytes = bytes + size
    end
    admits = admission.asked(p, x)
    bytes = bytes + #(admits or "")
    rare = table.concat({ x.version or "1", x.namespace or "default", x.deadline_at or "0", x.attempt_deadline_at or "0",
      x.retries or "0", x.crashes or "0", x.run or "0", x.cancel_until and "1" or "0", x.flow or "-" }, " ")
  else
    rare = "1 default 0 0 0 0 0 0 -"
  end
  local lease_id = x.lease_id
  return { p.id_prefix .. x.id .. " " .. lease_id .. " " .. x.lease_epoch .. " " .. (x.attempt_id or lease_id) .. " " .. x.attempt .. " "
    .. x.next .. " " .. x.at .. " " .. x.task .. " " .. lane_name .. " " .. (x.priority or "0") .. " " .. x.created_at .. " " .. rare,
    payload, x.payload_encoding or "", policy.text(p, x), x.detail and record.tags(p, x) or {}, head or (given or admits) and false,
    given or admits and false, admits }, bytes
end

-- Leases of this claim_id that are still held, after a lost reply; nil if the slot's last claim was another.
local function remembered(p, slot, n)
  local kept = redis.call("HGET", keys.claims(p), slot)
  local known, list = string.match(kept or "", "^(%d+) %d+ (.*)$")
  if known ~= n then return nil end
  local jobs = {}
  for id, epoch in string.gmatch(list, "(%S+)@(%d+)") do
    local x = record.load(p, id)
    if x and x.state == "active" and x.lease_epoch == epoch then
      jobs[#jobs + 1] = (answer(p, x, lanes.name(p, x.lane), redis.call("GET", keys.payload(p, id)) or ""))
    end
  end
  fence.replayed(p)
  return jobs
end

-- Why a popped job may not start now; it has been taken care of. nil: it may.
function claim.turned_away(p, x)
  if x.deadline_at and tonumber(x.deadline_at) <= p.now then
    state.finish(p, x, "expired", "execution_deadline")
    return "expired"
  end
  if x.flow then
    local stopped = cascade.turned_away(p, x)
    if stopped then return stopped end
  end
  if p.holds_n > 0 and not x.pending_outcome then
    local why = holds.of(p, x)
    if why then
      state.move(p, x, "blocked", why, "reason", "paused_by_operator", "moved_at", p.now)
      redis.call("ZADD", keys.held(p), 0, x.id)   -- not yet looked at by any release
      return "held"
    end
  end
end

-- How many jobs of a lane may start now by its own quota: none while it is halted, some while a release is used up.
function claim.room(p, lane, want)
  local row = admission.halt(p, admission.lane_set(lane))
  if not row or row.over_at <= p.now then return want end
  return math.min(want, row.allow)
end

-- Lease up to `want` jobs of one partition. Appends to out.jobs; out.bytes bounds one answer.
local function lease_from(p, a, want, out)
  local taken, names, skips = {}, a.lanes, 0
  local start = out.n % #names
  for step = 1, #names do
    local lane = want > 0 and lanes.named(p, names[(start + step - 1) % #names + 1])
    local room = want
    if lane and lane.quota then room = claim.room(p, lane, want) end
    if lane and room > 0 and (lane.state == "active" or lane.state == "draining") then
      local asked = room
      local got = queue.pop(p, lane, a.capability_sets, room, out.n)
      for i = 1, #got, 2 do
        local id = got[i]
        local x = p.known and p.known[id] or record.load_queued(p, id)
        -- A member without a record is what an interrupted repair leaves; popping it was the repair.
        if x and state.is_queued(x.state) then
          if out.bytes >= LIMITS.CLAIM_BYTES or skips >= LIMITS.HOLD_SKIPS_N then
            queue.put_back(p, x, got[i + 1])
            out.again = true
          else
            x.popped = true
            if claim.turned_away(p, x) then
              skips = skips + 1
              if x.adm then admission.give_back(p, x.adm) end
            else
              local payload = redis.call("GET", keys.payload(p, id)) or ""
              if p.bells then wake.taken(p, x.lane, x.cap or "-") end
              attempt.begin(p, x, a.claim_id .. "." .. #out.jobs, a.lease_ttl_ms, "claimed")
              if lane.quota and not x.pending_outcome then
                record.write(p, x, "lane_quota", lane.quota)
                admission.take(p, admission.lane_set(lane))
              end
              local job, bytes = answer(p, x, lane.name, payload)
              out.jobs[#out.jobs + 1] = job
              out.bytes = out.bytes + bytes
              taken[#taken + 1] = id .. "@" .. x.lease_epoch
              want = want - 1
            end
          end
        end
      end
      if (skips > 0 and #got == asked * 2 or p.look_again) and want > 0 then out.again = true end
      if lane.revision > out.revision then out.revision = lane.revision end
    end
  end
  if #taken > 0 then
    local fresh = redis.call("HSET", keys.claims(p), out.slot, out.serial .. " " .. string.format("%.0f", p.now) .. " " .. table.concat(taken, " "))
    if fresh == 1 then timers.reap(p, "claim", out.slot, p.now + 2 * a.lease_ttl_ms) end
  end
  return #taken
end

-- Park the worker under every queue it serves here, or take it out again.
local function park(p, a, on)
  for i = 1, #a.lanes do
    -- A lane nobody has submitted to yet gets its number now, so that its first job can ring us.
    local lane = lanes.named(p, a.lanes[i], on)
    if lane then
      -- Under every set its jobs require, and under a few that no job here has required yet: the first one rings.
      local caps, listed, known = { "-" }, {}, queue.served(p, lane, a.capability_sets)
      for c = 1, math.min(#a.capability_sets, LIMITS.HEADS_N) do
        caps[#caps + 1] = a.capability_sets[c]
        listed[a.capability_sets[c]] = true
      end
      for c = 1, #known do
        if not listed[known[c]] then caps[#caps + 1] = known[c] end
        listed[known[c]] = nil
      end
      if on then queue.stray(p, lane, listed) end
      for c = 1, #caps do
        local key = keys.park(p, lane.no, caps[c])
        if on then
          -- Bells pop the freshest, so those who died parked would stay for good: whoever parks sweeps.
          redis.call("ZREMRANGEBYSCORE", key, "-inf", "(" .. record.text(p, p.now))
          redis.call("ZADD", key, p.now + LIMITS.PARK_MS + 1000, a.park)
        else redis.call("ZREM", key, a.park) end
      end
    end
  end
end

-- Claim over partitions in the order given. The arguments have passed claim.check.
function claim.batch(ps, a, unpark)
  local slot, n = string.match(a.claim_id, "^(.*)%.(%d+)$")
  local out = { jobs = {}, bytes = 0, again = false, revision = 0, slot = slot, serial = n, n = tonumber(n) }
  if a.limit > 0 then
    for i = 1, #ps do
      local jobs = remembered(ps[i], slot, n)
      if jobs then
        for j = 1, #jobs do out.jobs[#out.jobs + 1] = jobs[j] end
        out.known = true
      end
    end
    if not out.known then
      local want = a.limit
      for i = 1, #ps do
        if want > 0 then
          -- While a ticker keeps its promise, what is due has been done; without one, claims do it.
          if ps[i].ticker_until <= ps[i].now then
            ps[i].edges_left = ps[i].edges_left or math.max(1, math.floor(LIMITS.EDGES_INLINE_N / #ps))
            due.run(ps[i], LIMITS.CLAIM_TICK_N)
            graph.settle(ps[i])
            queue.flush(ps[i])
          end
          want = want - lease_from(ps[i], a, want, out)
        end
      end
    end
  end
  local parked = a.park ~= nil and a.limit > 0 and #out.jobs == 0 and not out.again
  if parked then
    for i = 1, #ps do park(ps[i], a, true) end
  elseif unpark and a.park and #out.jobs > 0 then
    for i = 1, #ps do park(ps[i], a, false) end
  end
  return { "claimed", ps[1].now, out.jobs, out.again and 1 or 0, out.revision, parked and 1 or 0 }
end

end
