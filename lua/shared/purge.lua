-- shared/purge.lua -- how records leave: one execution, or a flow with all its members, some at a time.
--
-- A keyed execution or flow leaves a tombstone (id and digest) for its dedup window, so that its key stays taken; an
-- un-keyed one leaves nothing. Of a graph that was never published nothing stays, no tombstone either: its members are
-- live records that nobody may claim, and sending the graph again must find its ids free.

local purge = {}

-- Records one call removes of a flow: some 5 ms.
purge.PAGE_N = 200

local function bury(p, id, digest, until_ms)
  if string.sub(id, 15, 15) ~= "8" or until_ms <= p.now then return end
  redis.call("HSET", keys.tombs(p, id), id, string.format("%.0f ", until_ms) .. (digest or ""))
  timers.reap_first(p, "tomb", string.sub(id, -3), until_ms)
end

-- Every key an execution has.
local function unlink(p, x)
  redis.call("UNLINK", keys.core(p, x.id), keys.payload(p, x.id), keys.result(p, x.id), keys.detail(p, x.id),
    keys.attempts(p, x.id), keys.waiters(p, x.id), keys.journal(p, x.id), keys.suspension(p, x.id), keys.summary(p, x.id),
    keys.waitpoints(p, x.id), keys.signals(p, x.id))
  if x.flow then
    redis.call("UNLINK", keys.incoming(p, x.id), keys.outgoing(p, x.id))
    -- What was to go on with it may be late, where nobody has ticked for long.
    if x.deps then timers.clear(p, "siblings", x.id) end
    if x.children then timers.clear(p, "children", x.id) end
    if x.resolving then timers.clear(p, "edges", x.id) end
    if x.reopening then timers.clear(p, "reopen", x.id) end
  end
  if x.streams then stream.forget(p, x) end
end

-- Remove one terminal record and everything that hangs on it; its place in the index is the caller's. `unpublished`: its
-- id is to be free.
function purge.forget(p, x, unpublished)
  local lane = lanes.of(p, x.lane)
  if lane.bytes and x.size then
    lane.bytes = math.max(0, lane.bytes - tonumber(x.size))
    lanes.note(p, "y" .. lane.no, lane.bytes)
  end
  unlink(p, x)
  if unpublished then return end
  bury(p, x.id, x.digest, record.number(x, "at") + (policy.field(policy.of(p, x), "dedup_window_ms") or LIMITS.DEDUP_WINDOW_MS))
end

-- Remove a member of a graph that was never published. It has not run and nothing follows from its end, so it passes no
-- door; but the feed told of it, and so it is told that it is gone, and whoever awaits it too.
local function drop(p, x)
  local row = state.TABLE[x.state]
  if x.unique then admission.free(p, x) end
  if row.queued then queue.leave(p, x)
  elseif row.leased then
    timers.unlease(p, x)
    admission.settle(p, x)
  else queue.note(p, keys.index(p, x.lane, x.state), x.id, false) end
  if row.timer then timers.clear(p, row.timer, x.id) end
  redis.call("ZREM", keys.held(p), x.id)
  if x.deadline_at then timers.clear(p, "deadline", x.id) end
  if x.held_bytes then lanes.drop_bytes(p, x) end
  wake.waiters(p, x, "cancelled")
  events.add(p, x, x.state, "cancelled", "unpublished flow=" .. x.flow)
  unlink(p, x)
end

-- Whether a flow that has ended may go at all: nothing of it goes on, and it ended long enough ago.
function purge.may(p, f)
  return flows.alive(f) + f.resolving == 0 and f.ended_at <= p.now - LIMITS.RETENTION_MIN_AGE_MS
end

-- From now on nothing of it is to be had any more; reap goes on with it.
function purge.begin(p, f)
  flows.set(p, f, "state", "purging")
  timers.clear(p, "staging", f.id)
  timers.clear(p, "flow_cancel", f.id)
  if f.cancel_at > 0 then flows.set(p, f, "cancel_at", 0) end
  timers.reap(p, "flow", f.id, p.now)
end

-- Remove up to `limit` members of a flow that is being purged, and with the last of them the flow. Answers how many.
function purge.page(p, f, limit)
  local key = keys.members(p, f.id)
  local ids = redis.call("ZRANGE", key, 0, limit - 1)
  local published = f.ended_at > 0
  for i = 1, #ids do
    local x = record.load_all(p, ids[i])
    if x and state.is_terminal(x.state) then
      purge.forget(p, x, not published)
      queue.note(p, keys.index(p, x.lane, x.state), x.id, false)
    elseif x then
      drop(p, x)
    end
  end
  if #ids > 0 then redis.call("ZREM", key, unpack(ids)) end
  if #ids == limit and redis.call("EXISTS", key) == 1 then
    timers.reap(p, "flow", f.id, p.now)
    return #ids
  end
  if published then bury(p, f.id, f.digest, f.ended_at + LIMITS.DEDUP_WINDOW_MS) end
  wake.waiters(p, f, "cancelled")   -- of one that has ended nobody waits any more
  redis.call("UNLINK", f.key, keys.flow_text(p, f.id), key, keys.edges(p, f.id), keys.waiters(p, f.id))
  redis.call("ZREM", keys.flows(p), f.id)
  f.gone, p.flows[f.id] = true, nil
  events.flow(p, f.id, flows.public(f), "purged", published and "-" or "unpublished")
  return #ids + 1
end
