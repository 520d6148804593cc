-- shared/flows.lua -- a flow's record: how many of its executions are where, and what that makes of the whole.
--
-- A call reads the record of each flow it touches once (flows.load) and writes what it changed once (flows.flush, when
-- the partition is flushed). Counters follow every move of a member in the transition itself, so a flow ends in the
-- call that ends its last member, and its state needs no look at the members.
--
-- States of the record: staging (a graph in the sending), live, ended, purging. What the world sees is flows.public.

local flows = {}
do -- a chunk may hold 200 locals

-- Name in code -> name in the store. Absent numbers are 0, absent texts false.
local STORED = {
  state = "st", created_at = "c", moved_at = "m", revision = "r", edges = "e", members = "n", bytes = "z", digest = "dg", chunk = "ck",
  started_at = "sa", ended_at = "ea", outcome = "o", waiter = "w",
  uphill = "u", lane = "ln",                          -- some edge goes from a higher number to a lower; where its first member works
  policy = "x", cancelled_at = "xa", cancel_at = "xn", -- how it was cancelled and when; how far its members have been told
  queued = "q", delayed = "d", blocked = "b", active = "a", suspended = "s",   -- where its members are
  completed = "C", failed = "F", cancelled = "X", expired = "E", skipped = "S",
  resolving = "p",                                    -- ended members whose edges to others are still being resolved
  failures = "nf", cancels = "nc", broken = "nb",     -- ends nobody handles; groups that tolerated some failures and met more
}
local TEXT = { state = true, digest = true, uphill = true, lane = true, outcome = true, policy = true, waiter = true }

-- The counter of each state of an execution.
local COUNTER = { ready = "queued", granted = "queued", reclaimable = "queued", revoked = "queued", delayed = "delayed",
  blocked = "blocked", active = "active", suspended = "suspended",
  completed = "completed", failed = "failed", cancelled = "cancelled", expired = "expired", skipped = "skipped" }
local ENDED = { completed = true, failed = true, cancelled = true, expired = true, skipped = true }

-- Sources of a cancel that nobody need mind: the member was not needed any more, or went with its parent.
local UNMINDED = { not_needed = true, parent_cancelled = true }

-- A call may come to two hundred flows and asks each for a few of its fields: they are read when they are asked for.
local function field(f, name)
  local short = STORED[name]
  if not short then return nil end
  local flat, value = f.flat, nil
  for i = 1, #flat, 2 do
    if flat[i] == short then
      value = flat[i + 1]
      break
    end
  end
  if TEXT[name] then value = value or false
  else value = tonumber(value or "0") or 0 end
  f[name] = value
  return value
end
local FLOW = { __index = field }

local function open(p, fid, flat)
  return setmetatable({ id = fid, key = keys.flow(p, fid), flat = flat, changed = false, changed_n = 0, dirty = false, look = false }, FLOW)
end

local function remember(p, f)
  local all = p.flows
  if not all then
    all = { list = {} }
    p.flows = all
  end
  all[f.id] = f
  return f
end

-- The record of a flow, or nil. One table per flow and call: read it through this, change it with flows.set.
function flows.load(p, fid)
  local known = p.flows and p.flows[fid]
  if known then return known end
  local flat = redis.call("HGETALL", keys.flow(p, fid))
  if #flat == 0 then return nil end
  return remember(p, open(p, fid, flat))
end

-- It has changed, in a way that no field may say: its last mutation is now, written when the call closes.
function flows.touch(p, f)
  if not f.dirty then
    f.dirty = true
    local list = p.flows.list
    list[#list + 1] = f
  end
end

-- Change a field (a number, a text, or false for a text that is no more); written when the call closes.
function flows.set(p, f, name, value)
  f[name] = value
  local changed = f.changed
  if not changed then
    changed = {}
    f.changed = changed
  end
  if not changed[name] then
    f.changed_n = f.changed_n + 1
    changed[name], changed[f.changed_n] = true, name
  end
  flows.touch(p, f)
end

function flows.add(p, f, name, n) flows.set(p, f, name, f[name] + n) end

-- A new flow, in a state (staging or live). `given`: fields of the record by name (digest, chunk, ...) to begin with, or
-- nil. `text`: flat, stored name and value, of what stands in keys.flow_text (kind, ns, name, t:<tag>, ...). The caller
-- has looked that there is none.
function flows.create(p, fid, word, given, text)
  local f = remember(p, open(p, fid, {}))
  flows.set(p, f, "state", word)
  flows.set(p, f, "created_at", p.now)
  local known = {}
  for name in pairs(given or {}) do known[#known + 1] = name end -- order-free
  table.sort(known)
  for i = 1, #known do flows.set(p, f, known[i], given[known[i]]) end
  if text and #text > 0 then redis.call("HSET", keys.flow_text(p, fid), unpack(text)) end
  redis.call("ZADD", keys.flows(p), 0, fid)
  events.flow(p, fid, "-", "created", "-")
  return f
end

-- Members that have not ended.
function flows.alive(f) return f.queued + f.delayed + f.blocked + f.active + f.suspended end
function flows.over(f) return f.completed + f.failed + f.cancelled + f.expired + f.skipped end

-- What the world sees: open, running, blocked, completed, failed, cancelled.
function flows.public(f)
  if f.policy then return "cancelled" end
  if f.outcome then return f.outcome end
  if f.state == "staging" or f.started_at == 0 and flows.over(f) == 0 then return "open" end
  if f.queued + f.delayed + f.active + f.resolving > 0 then return "running" end
  return flows.alive(f) > 0 and "blocked" or "running"
end

-- Whether a new member, edge or replay must be refused, and the refusal.
function flows.closed(f)
  if not f then return reply.reject("flow_not_found") end
  if f.policy or f.state == "ended" or f.state == "purging" then return reply.reject("flow_already_terminal", flows.public(f)) end
end

-- What is to be done for members that have ended; done before the partition is flushed (graph.settle).
function flows.queue(p, item)
  local list = p.settling
  if list then list[#list + 1] = item else p.settling = { item } end
end

-- Look, when the partition is flushed, whether it has ended.
function flows.look(p, f)
  f.look = true
  flows.touch(p, f)
end

-- An end that nobody handles makes the flow's outcome; what undoes the end takes it back.
function flows.unhandled(p, f, x, outcome)
  if outcome == "failed" or outcome == "expired" then flows.add(p, f, "failures", 1)
  elseif outcome == "cancelled" then
    if x.detail and UNMINDED[redis.call("HGET", keys.detail(p, x.id), "cancelled_by")] then return end
    flows.add(p, f, "cancels", 1)
  else
    return
  end
  record.write(p, x, "unhandled", "1")
end

function flows.handled(p, f, x, outcome)
  if not x.unhandled then return end
  flows.add(p, f, outcome == "cancelled" and "cancels" or "failures", -1)
  record.write(p, x, "unhandled", false)
end

-- A member moves from a state (nil: it is new here) to another; called by state.enter for every move of a record with a
-- flow, when the record has been written. Answers what the feed is to say for a reason.
function flows.count(p, x, from, to, why)
  local f = flows.load(p, x.flow)
  if not f then return why end
  local left, entered = from and COUNTER[from], COUNTER[to]
  if left ~= entered then
    if left then flows.add(p, f, left, -1) end
    flows.add(p, f, entered, 1)
    -- In a flow that was cancelled alone, what is blocked does not go on.
    if entered == "blocked" and f.policy then f.look = true end
    if entered == "active" and f.started_at == 0 then flows.set(p, f, "started_at", p.now) end
  end
  if ENDED[to] then
    if x.outs then
      flows.add(p, f, "resolving", 1)
      -- While an earlier replay still reopens what depends on it, its new end has to wait for that.
      if not x.reopening then flows.queue(p, { what = "edges", id = x.id, outcome = to, x = x, from = 0, handled = false }) end
    else
      flows.unhandled(p, f, x, to)
    end
    if to == "cancelled" and x.children then flows.queue(p, { what = "children", id = x.id, from = 0 }) end
    if from then f.look = true end
    return (why or "-") .. " flow=" .. x.flow
  end
  if from and ENDED[from] then
    if x.resolving or x.reopening then flows.add(p, f, "resolving", -1) end
    if x.resolving then
      timers.clear(p, "edges", x.id)
      record.write(p, x, "resolving", false)
    end
    flows.handled(p, f, x, from)
    if f.state == "ended" then
      local was = flows.public(f)
      flows.set(p, f, "state", "live")
      flows.set(p, f, "outcome", false)
      flows.set(p, f, "ended_at", 0)
      events.flow(p, f.id, was, "reopened", x.id)
    end
  end
  return why
end

local function outcome_of(f)
  if f.policy then return "cancelled" end
  if f.failures > 0 or f.broken > 0 then return "failed" end
  return f.cancels > 0 and "cancelled" or "completed"
end

-- End it, if nothing of it goes on. What a cancel of the flow alone keeps from starting does not go on either.
local function decide(p, f)
  f.look = false
  if f.state ~= "live" or f.resolving > 0 then return end
  local alive = flows.alive(f) - (f.policy == "flow_only" and f.blocked or 0)
  if alive > 0 or f.members == 0 and not f.policy then return end
  local before, outcome = flows.public(f), outcome_of(f)
  flows.set(p, f, "state", "ended")
  flows.set(p, f, "outcome", outcome)
  flows.set(p, f, "ended_at", p.now)
  events.flow(p, f.id, before, outcome, "ended")
  if f.waiter then
    wake.waiters(p, f, outcome)
    flows.set(p, f, "waiter", false)
  end
  timers.reap(p, "flow", f.id, p.now + LIMITS.RETENTION_MIN_AGE_MS)
end

-- Write what this call changed: one HSET for each flow. Called by partition.flush, when members have settled.
function flows.flush(p)
  local list = p.flows.list
  if #list == 0 then return end
  p.flows.list = {}
  for i = 1, #list do
    local f = list[i]
    if f.look then decide(p, f) end
    if not f.gone then   -- removed by this call
      local set, n, gone = {}, 0, nil
      if f.moved_at ~= p.now then flows.set(p, f, "moved_at", p.now) end
      for j = 1, f.changed_n do
        local name = f.changed[j]
        local value = f[name]
        if value then
          set[n + 1], set[n + 2] = STORED[name], type(value) == "number" and record.text(p, value) or value
          n = n + 2
        else
          gone = gone or {}
          gone[#gone + 1] = STORED[name]
        end
      end
      if n > 0 then redis.call("HSET", f.key, unpack(set)) end
      if gone then redis.call("HDEL", f.key, unpack(gone)) end
    end
    f.changed, f.changed_n, f.dirty = false, 0, false
  end
end

end
