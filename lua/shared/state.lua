-- shared/state.lua -- the legal moves, and the one writer of a state.
--
-- A record stores three words (state, reason, next) from which all seven dimensions of the contract
-- follow; the projection is ffcore/states.py, and a test holds the two tables together. `state.move`
-- changes the record, its index, its timers, the event feed and the bells together; functions are the
-- guards around it. Every way to end goes through `state.finish`.

local state = {}
do -- helpers of this file; a chunk holds 200 locals

-- Where a state is indexed and which timer belongs to it. A queued state lives in its queue.
state.TABLE = {
  ready       = { queued = true },
  reclaimable = { queued = true },               -- the lease ran out
  revoked     = { queued = true },               -- an operator took the lease away
  granted     = { timer = "grant" },             -- reserved for one worker; its `at` is when that lapses
  delayed     = { timer = "delay" },             -- `at`: when it is due
  blocked     = { },
  active      = { leased = true },               -- `at`: when its lease runs out; indexed by that
  suspended   = { },
  completed   = { outcome = "success" },         -- of these five, `at` is when it ended
  failed      = { outcome = "failed" },
  cancelled   = { outcome = "cancelled" },
  expired     = { outcome = "expired" },
  skipped     = { outcome = "skipped" },
}

function state.is_terminal(word) return state.TABLE[word].outcome ~= nil end
function state.is_queued(word) return state.TABLE[word].queued or false end

-- Which moves exist between the states of a record; `state.create` makes the first. What had begun and was skipped runs
-- its compensations first, and ends as skipped from wherever that has led it.
local FROM_QUEUE = { "ready", "granted", "active", "blocked", "delayed", "completed", "failed", "cancelled", "expired", "skipped" }
state.MOVES = {
  ready       = FROM_QUEUE,
  reclaimable = { "granted", "active", "blocked", "ready", "failed", "cancelled", "expired", "skipped" },
  revoked     = { "granted", "active", "blocked", "ready", "failed", "cancelled", "expired", "skipped" },
  granted     = { "active", "ready", "reclaimable", "blocked", "cancelled", "expired", "failed", "skipped" },
  delayed     = { "ready", "blocked", "cancelled", "expired", "failed", "skipped" },
  blocked     = { "ready", "reclaimable", "revoked", "delayed", "blocked", "cancelled", "expired", "failed", "skipped" },
  active      = { "active", "ready", "reclaimable", "revoked", "delayed", "blocked", "suspended", "completed", "failed", "cancelled", "expired", "skipped" },
  suspended   = { "ready", "delayed", "blocked", "cancelled", "expired", "failed", "skipped" },
  completed   = { "ready", "blocked" },
  failed      = { "ready", "blocked" },
  cancelled   = { "ready", "blocked" },
  expired     = { "ready", "blocked" },
  skipped     = { "ready", "blocked" },
}

local legal
local function compile()
  legal = {}
  for from, list in pairs(state.MOVES) do -- order-free
    legal[from] = {}
    for i = 1, #list do legal[from][list[i]] = true end
  end
end

-- Take a record out of where its state keeps it.
local function leave(p, x, to)
  if not legal then compile() end
  local from = x.state
  -- An illegal move is a bug of the caller. It is raised before this call writes anything of the move,
  -- but Lua does not roll back what the function wrote before: guards come first.
  if not legal[from][to] then error("FFBUG no move from " .. from .. " to " .. to) end
  local left = state.TABLE[from]
  if left.queued then queue.leave(p, x)
  elseif left.leased then
    timers.unlease(p, x)
    if x.adm or x.lane_quota then admission.settle(p, x) end
  else queue.note(p, keys.index(p, x.lane, from), x.id, false) end
  if left.timer then timers.clear(p, left.timer, x.id) end
  if from == "blocked" and x.reason ~= "waiting_for_children" then
    -- Whichever list it was blocked on must not keep it: a purge later would leave a member without a record.
    redis.call("ZREM", keys.held(p), x.id)
    redis.call("ZREM", keys.unknown(p), x.id)
    timers.clear(p, "unknown_task", x.id)
  end
  return from
end

-- Put it where its new state keeps it, and tell the feed.
local function enter(p, x, from, to, why)
  local entered = state.TABLE[to]
  if entered.queued then queue.enter(p, x)
  elseif entered.leased then timers.lease(p, x)
  else queue.note(p, keys.index(p, x.lane, to), x.id, (entered.timer or entered.outcome) and x.at or p.now) end
  if entered.timer then timers.set(p, entered.timer, x.id, tonumber(x.at)) end
  if x.unique and (entered.outcome or entered.leased and x.unique == "q") then admission.free(p, x) end
  if x.streams then wake.readers(p, x, to) end
  if x.flow then why = flows.count(p, x, from, to, why) end
  events.add(p, x, from, to, why)
end

-- An operator's pause keeps what is not running from its queue, wherever it comes from; one that is delayed remembers
-- until when. What owes compensations is not kept from them.
local function stays_out(x, to) return x.paused and (state.TABLE[to].queued or to == "delayed") and not x.pending_outcome end
state.stays_out = stays_out

-- Move a record to a state, writing the fields given (name, value, ...; false removes one) with it.
function state.move(p, x, to, why, ...)
  local from = leave(p, x, to)
  record.write(p, x, "state", to, ...)
  if stays_out(x, to) then
    record.write(p, x, "state", "blocked", "reason", "paused_by_operator",
      "paused", string.match(x.paused, "^%d+") .. (to == "delayed" and " " .. x.reason .. " " .. x.at or ""))
    to, why = "blocked", (why or "-") .. " paused"
  end
  enter(p, x, from, to, why)
end

-- Back to the queue at the old turn, as what it was before: blocked or granted does not change that.
function state.requeue(p, x, why, ...)
  state.move(p, x, x.next == "reclaim" and "reclaimable" or "ready", why, "turn", queue.turn(p, x, false), "moved_at", p.now, ...)
end

-- Take a pause back: to its queue, or back to what it was delayed for, if that is still ahead.
function state.unpause(p, x, why, delay_ms)
  local reason, at = string.match(x.paused, "^%d+ (%S+) (%d+)$")
  record.write(p, x, "paused", false)
  if x.state ~= "blocked" or x.reason ~= "paused_by_operator" or redis.call("ZSCORE", keys.held(p), x.id) then
    -- It runs, waits or is kept by something else as well.
    events.add(p, x, x.state, x.state, "unpaused")
    return
  end
  local due = math.max(tonumber(at or "0"), delay_ms > 0 and p.now + delay_ms or 0)
  if due > p.now then
    state.move(p, x, "delayed", why, "reason", reason or (x.next == "retry" and "waiting_for_retry_backoff") or "waiting_for_resume_delay",
      "at", due, "moved_at", p.now)
  elseif at then
    state.move(p, x, "ready", why, "reason", false, "turn", queue.turn(p, x, true), "eligible_at", p.now, "moved_at", p.now)
  else
    state.requeue(p, x, why, "reason", false)
  end
end

-- `move` for the moves of every job, with up to three texts of common fields.
function state.step(p, x, to, why, n1, v1, n2, v2, n3, v3)
  local from = leave(p, x, to)
  record.put(x, "state", to, n1, v1, n2, v2, n3, v3)
  enter(p, x, from, to, why)
end

-- The first state of a record: the first n of `set` are its fields under their stored names, prepared by the caller,
-- and x has what indexes and events need (id, lane, priority, turn, cap, at). One HSET, index, event.
function state.create(p, x, to, set, n)
  x.state = to
  set[n + 1], set[n + 2] = "s", to
  redis.call("HSET", keys.core(p, x.id), unpack(set, 1, n + 2))
  enter(p, x, nil, to)
end

-- Retention looks at a lane when its oldest terminal record may be old enough; one entry per lane.
local function retention_due(p, x)
  local lane = lanes.of(p, x.lane)
  if lane.bytes then
    local size = redis.call("STRLEN", keys.payload(p, x.id)) + #(x.result or "") + redis.call("STRLEN", keys.result(p, x.id))
    record.write(p, x, "size", size)
    lane.bytes = lane.bytes + size
    lanes.note(p, "y" .. lane.no, lane.bytes)
  end
  local armed = p.retention_armed
  if not armed then
    armed = {}
    p.retention_armed = armed
  end
  if not armed[x.lane] then
    armed[x.lane] = true
    redis.call("ZADD", keys.reap(p), "NX", p.now + LIMITS.RETENTION_MIN_AGE_MS, "lane:" .. x.lane)
  end
end

-- An end that has compensations to run first. They are not bound by the deadline or a cancel of what they undo, and
-- count their own retries and crashes.
local function owe(p, x, outcome, why, ...)
  if x.deadline_at then timers.clear(p, "deadline", x.id) end
  if x.cancel_until then timers.clear(p, "cancel_grace", x.id) end
  record.write(p, x, ...)
  state.move(p, x, "ready", why, "pending_outcome", outcome, "next", "compensation", "deadline_at", false, "cancel_until", false,
    "attempt_deadline_at", false, "attempt_left_ms", false, "grant", false, "reason", false, "retries", false, "crashes", false,
    "unseen", false, "hand_backs", false, "turn", queue.turn(p, x, false), "moved_at", p.now)
end

-- What else ends with an execution: called by the door with (p, x, outcome) for records that have rare fields, before
-- the move. Later chapters add theirs while the library loads; one of them says how a wait is abandoned.
local at_end, abandon = {}, nil
function state.on_end(close) at_end[#at_end + 1] = close end
function state.on_abandon(leave_it) abandon = leave_it end

-- The one door to a terminal state. Closes lease, timers and indexes, keeps the outcome, tells waiters,
-- arms retention. An open saga turns the end into a claim for its compensations: the outcome waits.
function state.finish(p, x, outcome, why, name, value, ...)
  if not x.more and (not name or (value and not record.is_rare(name))) and select("#", ...) == 0 then
    -- No rare field: no deadline, waiter, cancel request or saga to see to.
    state.step(p, x, outcome, why, "at", record.text(p, p.now), name, value)
    return retention_due(p, x)
  end
  if x.state == "suspended" then abandon(p, x) end
  if x.saga_open then
    if not x.pending_outcome then return owe(p, x, outcome, why, name, value, ...) end
    -- Whatever became of the compensations, the execution ends as it was going to. What it owes is forgotten with the
    -- move: it says in which queue it stands.
    outcome = x.pending_outcome
  end
  for i = 1, #at_end do at_end[i](p, x, outcome) end
  if x.deadline_at then timers.clear(p, "deadline", x.id) end
  if x.cancel_until or x.reason or x.waiter or x.attempt_deadline_at or x.grant then
    if x.cancel_until then timers.clear(p, "cancel_grace", x.id) end
    wake.waiters(p, x, outcome)
    record.write(p, x, "cancel_until", false, "reason", false, "waiter", false, "attempt_deadline_at", false, "grant", false)
  end
  -- An earlier report (a delay, a retry) is not what ended it: sent again, it is told of the end.
  if x.ended_by and x.ended_by ~= "-" and name ~= "ended_by" then record.write(p, x, "ended_by", false) end
  state.move(p, x, outcome, why, "saga_open", false, "pending_outcome", false, "at", p.now, name, value, ...)
  retention_due(p, x)
end

end
