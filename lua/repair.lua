-- repair.lua -- put one thing right that a check found wrong. The record is the truth: everything else follows from it.
--
-- A repair looks again first, in the same call: what has been put right meanwhile is left alone, and asking twice does
-- no more than asking once. What only the record knew (a payload, a result, an attempt) cannot be made up.

local COUNTED_N = 10000   -- members one recount goes through

-- What follows from a member's record for its flow: its place there, the marks and timers of its edges, and what their
-- resolution has left undone.
local function rederive_member(p, x)
  local c, f = check.begin(p), flows.load(p, x.flow)
  if not f then return end
  flow_check.record(c, x, "")
  local incoming = keys.incoming(p, x.id)
  for i = 1, #c.rows do
    local remedy = c.rows[i][4]
    if remedy == "put it where its record says" then queue.note(p, keys.members(p, f.id), x.id, record.number(x, "node"))
    elseif remedy == "mark its record" then
      if redis.call("EXISTS", keys.outgoing(p, x.id)) == 1 then record.write(p, x, "outs", "1") end
      if redis.call("HEXISTS", incoming, "g") == 1 then record.write(p, x, "deps", "1") end
      if redis.call("HEXISTS", incoming, "c") == 1 then record.write(p, x, "children", "1") end
    elseif remedy == "set its timers as its record says" then
      local places = redis.call("HMGET", incoming, "k", "h")
      local due_at = { edges = x.resolving ~= nil and state.is_terminal(x.state), reopen = x.reopening ~= nil, siblings = places[1] ~= false, children = places[2] ~= false }
      for kind, set in pairs(due_at) do -- order-free
        if set then timers.set(p, kind, x.id, p.now) else timers.clear(p, kind, x.id) end
      end
    elseif remedy == "resolve its edges" then
      -- As if it ended now: what was resolved is passed over.
      flows.handled(p, f, x, x.state)
      flows.add(p, f, "resolving", 1)
      flows.queue(p, { what = "edges", id = x.id, outcome = x.state, x = x, from = 0, handled = false })
    elseif remedy == "let it go on" then
      if x.deps then graph.look(p, f, x) else graph.act(p, f, x, "s") end
    end
  end
end

-- How many ready jobs of a lane stand in queues of admission sets.
local function recount_classed(p, number)
  local lane = lanes.of(p, number)
  queue.flush(p)
  lane.classed = queue.count_classes(p, lane)
  lanes.changed(p, lane)
  return true
end

-- Everything that follows from a record, written anew.
local function rederive(p, x)
  local row = state.TABLE[x.state]
  if row.outcome then record.write(p, x, "reason", false, "cancel_until", false, "waiter", false, "attempt_deadline_at", false, "grant", false, "paused", false)
  else
    if row.timer ~= "grant" and x.grant then record.write(p, x, "grant", false) end
    if not row.leased and x.attempt_deadline_at then record.write(p, x, "attempt_deadline_at", false) end
  end
  if x.suspend_until and x.state ~= "suspended" then record.write(p, x, "suspend_until", false) end
  if not x.more then redis.call("HSET", x.key, record.short("more"), "1") end
  if not x.detail and redis.call("EXISTS", keys.detail(p, x.id)) == 1 then record.write(p, x, "detail", "1") end
  if not x.journal and redis.call("EXISTS", keys.journal(p, x.id)) == 1 then record.write(p, x, "journal", journal.origin(x)) end
  if not x.suspension and redis.call("EXISTS", keys.suspension(p, x.id)) == 1 then record.write(p, x, "suspension", 1) end
  if not x.waitpoints and redis.call("EXISTS", keys.waitpoints(p, x.id)) == 1 then record.write(p, x, "waitpoints", "1") end
  local streamed = stream.attempts(p, x.id)
  record.write(p, x, "streams", streamed[#streamed] and streamed[#streamed][1] or false)
  if not x.result_kept then redis.call("UNLINK", keys.result(p, x.id)) end
  if row.queued then
    queue.enter(p, x)
    if x.adm then recount_classed(p, x.lane) end
  elseif row.leased then timers.extend(p, x)
  else
    local key, score = check.place(p, x)
    queue.note(p, key, x.id, score or tonumber(redis.call("ZSCORE", key, x.id) or nil) or p.now)
  end
  local kinds_due, due_at = check.followed(), check.due(x)
  for i = 1, #kinds_due do
    local at = tonumber(due_at[kinds_due[i]] or nil)
    if at then timers.set(p, kinds_due[i], x.id, at) else timers.clear(p, kinds_due[i], x.id) end
  end
  local waits = x.state == "blocked" and x.reason == "waiting_for_capable_worker"
  local timer = redis.call("ZSCORE", keys.timers(p), "unknown_task:" .. x.id)
  if waits and (timer or redis.call("ZSCORE", keys.unknown(p), x.id)) then
    redis.call("ZADD", keys.unknown(p), "NX", p.now, x.id)
    if not timer then timers.set(p, "unknown_task", x.id, p.now + LIMITS.UNKNOWN_TASK_MS) end
  else
    redis.call("ZREM", keys.unknown(p), x.id)
    timers.clear(p, "unknown_task", x.id)
  end
  if row.outcome then
    timers.reap_first(p, "lane", x.lane, p.now)
    lanes.note(p, "g" .. x.lane, "")   -- it may stand where retention has passed
  end
  if x.flow then rederive_member(p, x) end
end

-- ---- what is not an execution ------------------------------------------------------------------------

local function recount_running(p)
  local leases = redis.call("ZRANGE", keys.leases(p), 0, COUNTED_N)
  if #leases > COUNTED_N then return false end
  local running, numbers = {}, lanes.numbers(p)
  for i = 1, #leases do
    local x = record.load(p, leases[i])
    if x and x.lane then running[x.lane] = (running[x.lane] or 0) + 1 end
  end
  for i = 1, #numbers do
    local lane = lanes.of(p, numbers[i])
    lane.active = running[numbers[i]] or 0
    lanes.changed(p, lane)
  end
  return true
end

local function recount_bytes(p, number)
  local sum, left = 0, COUNTED_N
  for word, row in pairs(state.TABLE) do -- order-free
    if row.outcome then
      local ids = redis.call("ZRANGE", keys.index(p, number, word), 0, left)
      left = left - #ids
      if left < 0 then return false end
      for i = 1, #ids do
        local x = record.load_all(p, ids[i])
        if x then sum = sum + record.number(x, "size") end
      end
    end
  end
  local lane = lanes.of(p, number)
  if lane.bytes and lane.bytes ~= sum then lanes.note(p, "y" .. number, sum) end
  return true
end

-- Payload bytes of jobs that have not ended, of a lane with a bound of them.
local function recount_held(p, number)
  local places, sum, left = { keys.leases(p) }, 0, COUNTED_N
  for word, row in pairs(state.TABLE) do -- order-free
    if not row.outcome and not row.queued and not row.leased then places[#places + 1] = keys.index(p, number, word) end
  end
  local ready = queue.sources(p, lanes.of(p, number))
  for i = 1, #ready do places[#places + 1] = ready[i][2] end
  for i = 1, #places do
    local ids = redis.call("ZRANGE", places[i], 0, left)
    left = left - #ids
    if left < 0 then return false end
    for j = 1, #ids do
      local x = record.load_all(p, ids[j])
      if x and x.lane == number then sum = sum + record.number(x, "held_bytes") end
    end
  end
  lanes.note(p, "z" .. number, sum)
  return true
end

-- The header and what it counts. nil: there is no such count; false: too much to count at once.
local function recount(p, what, number)
  if what == "running" then return recount_running(p) end
  if what == "bytes" then return lanes.name(p, number) ~= "" and recount_bytes(p, number) end
  if what == "held" then return lanes.name(p, number) ~= "" and recount_held(p, number) end
  if what == "classed" then return lanes.name(p, number) ~= "" and recount_classed(p, number) end
  if what == "header" then
    redis.call("PERSIST", p.key)
    return true
  end
  if what == "holds" then
    local n = redis.call("HLEN", keys.holds(p))
    lanes.note(p, "holds", n)
    if n > 0 then partition.mark_rare(p) end
    return true
  end
end

-- A flow and what it counts. false: too much to count at once.
local function mend_flow(p, c, fid)
  local f = flows.load(p, fid)
  if not f then return nil end
  local done = nil
  for i = 1, #c.rows do
    local remedy = c.rows[i][4]
    if remedy == "put it among them" then redis.call("ZADD", keys.flows(p), 0, fid); done = true
    elseif remedy == "look at it" then timers.reap(p, "flow", fid, p.now); done = true
    elseif remedy == "let it end" then flows.look(p, f); done = true
    elseif remedy == "set its timers" then
      if f.state == "staging" then timers.set(p, "staging", fid, p.now + LIMITS.STAGING_MS) else timers.clear(p, "staging", fid) end
      if f.cancel_at > 0 then timers.set(p, "flow_cancel", fid, p.now) else timers.clear(p, "flow_cancel", fid) end
      done = true
    elseif remedy == "" and done == nil then done = false end
  end
  if f.state == "purging" or not f.state then return done end
  local there = flow_check.recount(p, fid, COUNTED_N)
  if not there then return done end
  local before = f.changed_n
  for name, n in pairs(there) do if f[name] ~= n then flows.set(p, f, name, n) end end -- order-free
  if f.changed_n > before then
    flows.look(p, f)
    return true
  end
  return done
end

-- What a missing entry of the reap set would look after, if it is still there.
local WATCHED = {
  lane = function(p, id) return lanes.name(p, id) ~= "" end,
  idle = function(p, id) return lanes.name(p, id) ~= "" end,
  claim = function(p, id) return redis.call("HEXISTS", keys.claims(p), id) == 1 end,
  tomb = function(p, id) return redis.call("EXISTS", keys.tombs(p, id)) == 1 end,
  waiters = function(p, id) return redis.call("EXISTS", keys.waiters(p, id)) == 1 end,
  schedule = function(p, id) return redis.call("EXISTS", keys.schedule(p, id)) == 1 end,
  workers = function(p) return redis.call("EXISTS", keys.workers(p)) == 1 end,
  reports = function(p, id) return redis.call("EXISTS", keys.reports(p, id)) == 1 end,
  halts = function(p, uuid) return redis.call("HEXISTS", keys.halts(p), "o:" .. uuid) == 1 end,
  waiting = function(p, id) return redis.call("EXISTS", keys.waiting(p, id)) == 1 end,
}

-- Members that are wanted and missing. true: done; nil: nothing is missing.
local function add_member(p, key, member)
  local kind, id = string.match(member, "^([%w_]+):(.*)$")
  if key == keys.reap(p) then
    local watched = WATCHED[kind] or quota_check.WATCHED[kind]
    if not watched or not watched(p, id) or redis.call("ZSCORE", key, member) then return nil end
    timers.reap(p, kind, id, p.now)
    return true
  elseif key == keys.timers(p) and kind == "order" then
    if lanes.name(p, id) == "" or not lanes.of(p, id).moving or redis.call("ZSCORE", key, member) then return nil end
    timers.set(p, kind, id, p.now)
    return true
  elseif key == keys.timers(p) and quota_check.ASKED[kind] then
    if not quota_check.ASKED[kind](p, id) or redis.call("ZSCORE", key, member) then return nil end
    timers.set(p, kind, id, p.now)
    return true
  elseif key == keys.quotas(p) then
    if not quotas.load(p, member) or redis.call("ZSCORE", key, member) then return nil end
    redis.call("ZADD", key, 0, member)
    return true
  elseif key == keys.held(p) then
    local x = record.load(p, member)
    if not x or x.state ~= "blocked" or x.reason ~= "paused_by_operator" or redis.call("ZSCORE", key, member) then return nil end
    redis.call("ZADD", key, 0, member)
    timers.set(p, "release", "held", p.now)
    redis.call("HINCRBY", p.key, "releases", 1)
    return true
  elseif key == keys.lanes(p) then
    local number = string.match(member, "^#(%d+)$")
    if not number then return nil end
    local name, flat = redis.call("HGET", key, member), redis.call("HGETALL", key)
    for i = 1, #flat, 2 do
      if not name and flat[i + 1] == number and string.sub(flat[i], 1, 1) ~= "#" then name = flat[i] end
    end
    local known = name and redis.call("HGET", key, name)
    -- Two lanes of one number, or a name that is another's: which is right, nobody can say.
    if not name or (known and known ~= number) or (known and redis.call("HEXISTS", key, member) == 1) then return nil end
    redis.call("HSET", key, member, name, name, number)
    return true
  end
end

-- A member that should not be there, or one of a hash that lacks its timer.
local function repair_member(p, c, kind, key, member)
  local value
  if kind.type == "hash" then value = redis.call("HGET", key, member)
  elseif kind.type == "list" then value = (flow_check.dependents(c, key, COUNTED_N) or {})[member]
  else value = redis.call("ZSCORE", key, member) end
  if value and kind.member then kind.member(c, key, member, value) end
  if not c.rows[1] then return add_member(p, key, member) end
  local remedy = c.rows[1][4]
  if remedy == "drop the member" then
    if kind.type == "hash" then redis.call("HDEL", key, member)
    elseif kind.type == "list" then redis.call("LREM", key, 0, member)
    else redis.call("ZREM", key, member) end
  elseif remedy == "tell its upstream" then
    redis.call("RPUSH", keys.outgoing(p, member), string.sub(key, -36))
    redis.call("HSET", keys.core(p, member), record.short("outs"), "1", record.short("more"), "1")
  elseif remedy == "set its timer" and kind.name == "reserved" then timers.set(p, "res", string.sub(key, -36) .. " " .. member, p.now)
  elseif remedy == "set its timer" then timers.set(p, kind.name == "halts" and "halt" or "outbox", member, p.now)
  elseif remedy == "let it start" then
    local score, number, cap = redis.call("ZSCORE", key, member), string.match(key, ":(%d+):([%x%-]+)$")
    redis.call("ZREM", key, member)
    redis.call("ZADD", keys.ring(p, number, cap), "LT", score, member)
  elseif remedy == "name it both ways" then return add_member(p, key, string.match(member, "^#") and member or "#" .. value)
  elseif remedy == "count again" then
    local count, bytes = tonumber(string.match(value, "^%d+")), 0
    for seq = 1, count do bytes = bytes + redis.call("HSTRLEN", key, seq) end
    redis.call("HSET", key, member, count .. " " .. bytes)
  elseif remedy == "look at it" then return add_member(p, keys.reap(p), string.sub(c.rows[1][5], #check.object(p, keys.reap(p)) + 2))
  else return false end
  return true
end

local function repair_key(p, c, key)
  local kind, id = kinds.of(p, key)
  kinds.check(c, key)
  local done
  if kind and kind.name == "flow" then done = mend_flow(p, c, id) end
  if kind and kind.name == "budget" then done = budget_check.mend(p, c, id) end
  for i = 1, #c.rows do
    local remedy, object = c.rows[i][4], c.rows[i][5]
    if object == check.object(p, key) then
      if remedy == "delete the key" then redis.call("UNLINK", key); done = true
      elseif remedy == "let it stay" then redis.call("PERSIST", key); done = true
      elseif remedy == "count again" and kind and kind.name == "incoming" then
        local there, g = flow_check.count_rows(p, id), graph.read_group(redis.call("HGET", key, "g"))
        if g then
          g.n, g.ok, g.bad = there.n, there.ok, there.bad
          redis.call("HSET", key, "g", graph.group_text(g))
        end
        if there.children > 0 then redis.call("HSET", key, "c", there.children .. " " .. there.left) end
        done = true
      elseif done == nil then done = false end
    end
  end
  return done
end

-- true: done; false: cannot be; nil: nothing is wrong.
local function repair_object(p, object)
  local c = check.begin(p)
  local name, member = string.match(object, "^(%S*) (.+)$")
  if name == "" then return recount(p, string.match(member, "^(%l+) ?(%d*)$")) end
  local key = p.key .. (name or object)
  local kind = key ~= p.key and kinds.of(p, key)
  if member then
    if not kind then return nil end
    return repair_member(p, c, kind, key, member)
  end
  if redis.call("EXISTS", key) == 0 then return nil end
  return repair_key(p, c, key)
end

define {
  name    = "ff_repair",
  args    = { "object:str", "invariant:str" },
  returns = { "repaired", "nothing_wrong", "beyond_repair" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local id = #a.object == p.id_prefix_n + 36 and string.sub(a.object, 1, p.id_prefix_n) == p.id_prefix and string.sub(a.object, p.id_prefix_n + 1)
    if not id then
      local done = repair_object(p, a.object)
      if done == nil then return { "nothing_wrong" } end
      return { done and "repaired" or "beyond_repair", {} }
    end
    local before, after = check.begin(p), check.begin(p)
    local x, concerned, mends = check.record(before, id), false, false
    for i = 1, #before.rows do
      if before.rows[i][1] == a.invariant then
        concerned = true
        mends = mends or before.rows[i][4] ~= ""
      end
    end
    if x and not concerned and a.invariant == "I3" and add_member(p, keys.held(p), id) then return { "repaired", {} } end
    if not x or not concerned then return { "nothing_wrong" } end
    if mends then
      rederive(p, x)
      partition.flush(p)
      check.record(after, id)
    else
      after = before
    end
    local left = {}
    for i = 1, #after.rows do if after.rows[i][1] == a.invariant then left[#left + 1] = after.rows[i][3] end end
    return { #left > 0 and "beyond_repair" or "repaired", left }
  end,
}
