-- shared/queue.lua -- the ready executions of a lane, in the order they are claimed.
--
-- A queue is one (lane, capability set); its members are ordered by priority band, then by turn, or by age where the
-- lane says so (shared/order.lua). Turns are start-time fair queueing: a fairness key's next job takes the later of
-- the lane's virtual time and the key's own finish, so a key that floods a lane queues behind itself, and everybody
-- else does not. Without fairness keys there is one tenant, and a turn is a plain sequence: strict FIFO.
-- Order is exact within a partition, statistical across partitions.

local queue = {}

local BAND, UNIT = order.BAND, order.UNIT
local NO_SETS = {}

-- Collected index writes, one ZADD and one ZREM per index and call.
function queue.note(p, key, id, value)
  local all = p.index_writes
  local set = all and all[key]
  if set then return timers.note(set, id, value) end
  set = timers.begun(id, value)
  if all then all[key], all[#all + 1] = set, key
  else p.index_writes = { key, [key] = set } end
end

function queue.flush(p)
  local all = p.index_writes
  if not all then return end
  p.index_writes = nil
  for i = 1, #all do timers.write(all[i], all[all[i]]) end
end

-- Every key that holds ready jobs of a lane: { capability set, key, a word for it }. While the lane is ordered anew
-- what has not moved yet stands in the key of the old order, behind; its word comes after "ready", because a walk goes by
-- words (shared/walk.lua) and what is put aside must not come to stand where it has been.
function queue.sources(p, lane)
  local sets, out = lane.revision > 0 and redis.call("HKEYS", keys.caps(p, lane.no)) or {}, {}
  table.sort(sets)
  table.insert(sets, 1, "-")
  for i = 1, #sets do out[i] = { sets[i], keys.queue(p, lane.no, sets[i]), "ready:" .. sets[i] } end
  if lane.moving then
    for i = 1, #sets do out[#out + 1] = { sets[i], keys.before(p, lane.no, sets[i]), "rest:" .. sets[i] } end
  end
  return out
end

-- Whether anything is ready under a capability set.
function queue.any(p, lane, cap)
  return redis.call("EXISTS", keys.queue(p, lane.no, cap)) == 1
    or lane.moving ~= nil and redis.call("EXISTS", keys.before(p, lane.no, cap)) == 1
end

-- Where a queued record stands: key and score.
function queue.place(p, x)
  local lane, cap = lanes.of(p, x.lane), x.cap or "-"
  if lane.moving then
    local old = redis.call("ZSCORE", keys.before(p, lane.no, cap), x.id)
    if old then return keys.before(p, lane.no, cap), tonumber(old) end
  end
  return keys.queue(p, lane.no, cap), order.score(lane, x)
end

-- The next turn of a lane for a job. Virtual time and finishes are kept per band, in one small set:
-- member "-" is the lane's virtual time, every other member a fairness key's finish.
local function next_turn(p, x)
  local lane = lanes.of(p, x.lane)
  local turn = lane.turn
  if x.fair and not lane.keyed then
    -- First fairness key of the lane: newcomers start level with what is served next, not with zero.
    queue.order(p, lane, true, nil)
  end
  if not lane.keyed then
    lane.turn = turn + UNIT
    lanes.changed(p, lane)
    return turn
  end
  local key = keys.turns(p, lane.no, order.band(lane, x))
  local seen = p.turns
  if not seen then
    seen = {}
    p.turns = seen
  end
  local at = seen[key]
  if not at then
    local virtual = tonumber(redis.call("ZSCORE", key, "-") or "-1")
    if virtual < 0 then
      local head = redis.call("ZRANGE", keys.queue(p, lane.no, x.cap or "-"), 0, 0, "WITHSCORES")
      virtual = head[2] and tonumber(head[2]) % BAND or turn
      redis.call("ZADD", key, virtual, "-")
    end
    at = { virtual = virtual }
    seen[key] = at
  end
  if not x.fair then
    turn = math.max(turn, at.virtual)
    lane.turn = turn + UNIT
    lanes.changed(p, lane)
    return turn
  end
  local finish = at[x.fair] or tonumber(redis.call("ZSCORE", key, x.fair) or "-1")
  turn = math.max(at.virtual, finish)
  at[x.fair] = turn + UNIT
  queue.note(p, key, x.fair, turn + UNIT)
  return turn
end

local function intern_set(p, lane, digest, text)
  redis.call("HSET", keys.caps(p, lane.no), digest, text)
  -- The time, because a claim answers the highest revision of all lanes and partitions it looked at: a plain count
  -- of one that changes rarely would hide behind another's.
  lane.revision = math.max(lane.revision + 1, p.now)
  lanes.note(p, "c" .. lane.no, lane.revision)
  -- Nobody can be parked under a set nobody knew: ring the lane's idle workers to read the table.
  for _ = 1, LIMITS.HEADS_N do wake.ring(p, lane.no, "-") end
end

-- The table may have given up a set while its last job was running, delayed or blocked. Without its row no
-- worker would ever look into that queue again, so a job that comes back brings it along.
local function known_set(p, x)
  local seen = p.known_sets or {}
  p.known_sets = seen
  local key = x.lane .. ":" .. x.cap
  if seen[key] then return end
  seen[key] = true
  if redis.call("HEXISTS", keys.caps(p, x.lane), x.cap) == 0 then
    local tokens = { unpack(policy.field(policy.field(policy.of(p, x), "routing_requirements"), "required_capabilities") or {}) }
    table.sort(tokens)
    intern_set(p, lanes.of(p, x.lane), x.cap, table.concat(tokens, ","))
  end
end

-- The digest of a set of capability tokens (sorted), and the lane's table knows it.
function queue.capability_set(p, lane, tokens)
  table.sort(tokens)
  local text = table.concat(tokens, ",")
  local digest = string.sub(redis.sha1hex(text), 1, 12)
  local key = keys.caps(p, lane.no)
  if redis.call("HEXISTS", key, digest) == 0 then
    if redis.call("HLEN", key) >= LIMITS.CAP_SETS_N then
      -- Reuse: a set whose queue is empty can be interned again by the next job that needs it.
      local known = redis.call("HKEYS", key)
      table.sort(known)
      local freed = false
      for i = 1, #known do
        if not queue.any(p, lane, known[i]) then
          redis.call("HDEL", key, known[i])
          redis.call("ZADD", keys.strays(p, lane.no), p.now + LIMITS.PARK_MS + 1000, known[i])
          freed = true
          break
        end
      end
      if not freed then return nil end
    end
    intern_set(p, lane, digest, text)
  end
  p.known_sets = p.known_sets or {}
  p.known_sets[lane.no .. ":" .. digest] = true
  return digest
end

-- Put a record into its queue. The turn comes first and must be written with the record.
function queue.enter(p, x)
  local cap, lane = x.cap or "-", lanes.of(p, x.lane)
  if x.cap then known_set(p, x) end
  queue.note(p, keys.queue(p, x.lane, cap), x.id, order.score(lane, x))
  if order.by_tenant(lane) then queue.note(p, order.tenant(p, lane, x), x.id, order.age(lane, x))
  elseif lane.moving == 2 then queue.note(p, order.tenant(p, lane, x), x.id, false) end
  if lane.moving then queue.note(p, keys.before(p, x.lane, cap), x.id, false) end
  wake.ring(p, x.lane, cap)
end

function queue.leave(p, x)
  if x.popped then
    x.popped = nil
  else
    local lane, cap = lanes.of(p, x.lane), x.cap or "-"
    queue.note(p, keys.queue(p, x.lane, cap), x.id, false)
    if lane.aged and lane.keyed or lane.moving == 2 then queue.note(p, order.tenant(p, lane, x), x.id, false) end
    if lane.moving then queue.note(p, keys.before(p, x.lane, cap), x.id, false) end
  end
end

-- A job that becomes eligible for the first time, or after a delay, takes a turn; one that only comes
-- back (handed back, resumed, reclaimed, unblocked) keeps its own.
function queue.turn(p, x, fresh)
  if not fresh and x.turn then return x.turn end
  return record.text(p, next_turn(p, x))
end

-- A worker parks under sets that no job of the lane has required: their keys must be found again when they are of no
-- use any more. Those the table knows are found through the table.
function queue.stray(p, lane, sets)
  local flat = {}
  for set in pairs(sets) do flat[#flat + 1] = set end -- order-free
  if #flat == 0 then return end
  table.sort(flat)
  local scored = {}
  for i = 1, #flat do scored[#scored + 1], scored[#scored + 2] = p.now + LIMITS.PARK_MS + 1000, flat[i] end
  redis.call("ZADD", keys.strays(p, lane.no), unpack(scored))
end

-- Those of a caller's capability sets that the lane's table knows, in the caller's order. Nothing waits under any
-- other, and a set that enters the table rings the lane's idle workers. `caps` is the same for a whole call.
function queue.served(p, lane, caps)
  if lane.revision == 0 or #caps == 0 then return NO_SETS end
  local seen = p.served or {}
  p.served = seen
  local found = seen[lane.no]
  if not found then
    local known, rows = {}, redis.call("HKEYS", keys.caps(p, lane.no))
    for i = 1, #rows do known[rows[i]] = true end
    found = {}
    for i = 1, #caps do if known[caps[i]] then found[#found + 1] = caps[i] end end
    seen[lane.no] = found
  end
  return found
end

-- Up to `want` jobs of a lane, best first, over the capability sets given: id, score, id, score.
-- Pops them: whoever calls this leases them or puts them back in the same call. One call compares at most HEADS_N
-- queues that hold anything; `start` is another from call to call, so that no set stands behind the others for good.
function queue.pop(p, lane, caps, want, start)
  local heads = { keys.queue(p, lane.no, "-") }
  local sets = queue.served(p, lane, caps)
  local cap_of = #sets > 0 and {} or NO_SETS
  for i = 0, #sets - 1 do
    local cap = sets[(start + i) % #sets + 1]
    local key = keys.queue(p, lane.no, cap)
    if redis.call("EXISTS", key) == 1 then
      heads[#heads + 1] = key
      cap_of[key] = cap
      if #heads > LIMITS.HEADS_N then break end
    end
  end
  local got
  if #heads == 1 then
    got = redis.call("ZPOPMIN", heads[1], want)
    if order.by_tenant(lane) then order.choose(p, lane, "-", got) end
  else
    got = {}
    while #got < want * 2 do
      local best, best_score
      for i = 1, #heads do
        local head = redis.call("ZRANGE", heads[i], 0, 0, "WITHSCORES")
        if head[2] and (not best or tonumber(head[2]) < best_score) then best, best_score = heads[i], tonumber(head[2]) end
      end
      if not best then break end
      local one = redis.call("ZPOPMIN", best, 1)
      if order.by_tenant(lane) then order.choose(p, lane, cap_of[best] or "-", one) end
      got[#got + 1], got[#got + 2] = one[1], one[2]
    end
  end
  if lane.keyed and #got > 0 then
    -- Virtual time follows the turns served, in every band this batch has reached; finishes it has passed say
    -- nothing any more. It never falls: a job that kept an old turn (handed back, or of a capability set nobody
    -- served for a while) must not put newcomers before those who have waited.
    for i = 2, #got, 2 do
      local s, following = tonumber(got[i]), tonumber(got[i + 2])
      local b = math.floor(s / BAND)
      if not following or math.floor(following / BAND) ~= b then
        local key, turn = keys.turns(p, lane.no, b), string.format("%.0f", s % BAND)
        redis.call("ZREMRANGEBYSCORE", key, "-inf", "(" .. turn)
        redis.call("ZADD", key, "GT", turn, "-")
      end
    end
    p.turns = nil
  end
  if lane.moving and #got < want * 2 then queue.pop_before(p, lane, sets, want, got) end
  return got
end

-- What still stands in the old order comes behind what has moved.
function queue.pop_before(p, lane, sets, want, got)
  for i = 0, #sets do
    local cap = sets[i] or "-"
    if #got >= want * 2 then break end
    local old = redis.call("ZPOPMIN", keys.before(p, lane.no, cap), want - #got / 2)
    for j = 1, #old, 2 do
      if lane.moving == 2 then
        redis.call("ZREM", keys.tenant(p, lane.no, cap, redis.call("HGET", keys.core(p, old[j]), record.short("fair")) or "-"), old[j])
      end
      got[#got + 1], got[#got + 2] = old[j], old[j + 1]
    end
  end
end

-- Put a popped job back where it was.
function queue.put_back(p, x, popped_score)
  local lane = lanes.of(p, x.lane)
  if lane.aged or lane.moving then
    -- Another's turn, or a place in an order that is being left: by its record, which this call may have read in part.
    local whole = record.load_all(p, x.id)
    redis.call("ZADD", keys.queue(p, x.lane, x.cap or "-"), order.score(lane, whole), x.id)
    if order.by_tenant(lane) then redis.call("ZADD", order.tenant(p, lane, whole), order.age(lane, whole), x.id) end
    return
  end
  redis.call("ZADD", keys.queue(p, x.lane, x.cap or "-"), popped_score, x.id)
end

-- Order a lane's queues in another way: with fairness keys (nil: as before), aged by so many seconds (0: strict, nil: as
-- before). What is ready now is put aside as it stands and moved over by the ticker, best first, some at a time; until
-- then it comes behind what was moved or came later. Turns begin anew, behind every turn the lane has given, so what
-- comes back later with an old one comes first.
function queue.order(p, lane, keyed, aged)
  if lane.moving and (lane.aged or aged) then
    -- One move at a time: what is wanted now follows it. Until then a fairness key counts for nothing.
    local was_keyed, was_aged = string.match(lanes.noted(p, "w" .. lane.no), "^(%d) (%d+)$")
    if keyed == nil then keyed = was_keyed and was_keyed == "1" or lane.keyed end
    lanes.note(p, "w" .. lane.no, (keyed and "1 " or "0 ") .. (aged or was_aged or lane.aged or 0))
    return
  end
  if keyed == nil then keyed = lane.keyed end
  if aged == nil then aged = lane.aged elseif aged == 0 then aged = nil end
  if not lane.aged and not aged then
    -- Turns say it all: a first fairness key of a strict lane changes no place.
    lane.keyed = keyed
    lanes.order_changed(p, lane)
    return
  end
  queue.flush(p)
  local sources, aside, spent = queue.sources(p, lane), {}, {}
  for i = 1, #sources do if redis.call("EXISTS", sources[i][2]) == 1 then aside[#aside + 1] = sources[i] end end
  for b = 0, LIMITS.PRIORITY_MAX - LIMITS.PRIORITY_MIN do
    local key = keys.turns(p, lane.no, b)
    local last = lane.keyed and redis.call("ZRANGE", key, -1, -1, "WITHSCORES")[2]
    if last then
      lane.turn = math.max(lane.turn, tonumber(last))
      spent[#spent + 1] = key
    end
  end
  p.turns = nil
  lane.moving = aside[1] and (order.by_tenant(lane) and 2 or 1) or nil
  lane.keyed, lane.aged = keyed, aged
  lanes.changed(p, lane)
  lanes.order_changed(p, lane)
  if aside[1] then
    timers.set(p, "order", lane.no, p.now)
    -- At once, and before anything moves: a call that breaks off must leave what was put aside in sight.
    redis.call("HSET", p.key, "f" .. lane.no, record.text(p, lane.turn), "k" .. lane.no, lanes.noted(p, "k" .. lane.no))
    redis.call("ZADD", keys.timers(p), p.now, "order:" .. lane.no)
  end
  for i = 1, #aside do redis.call("RENAME", aside[i][2], keys.before(p, lane.no, aside[i][1])) end
  if spent[1] then redis.call("UNLINK", unpack(spent)) end
end

-- Move up to `limit` ready jobs over; whether all have moved.
function queue.move_over(p, lane, limit)
  queue.flush(p)   -- what has left the queue earlier in this call must not be brought back
  local sources = queue.sources(p, lane)
  for i = #sources / 2 + 1, #sources do
    local cap, old = sources[i][1], sources[i][2]
    local ids = redis.call("ZRANGE", old, 0, limit - 1)
    p.moved_n = (p.moved_n or 0) + #ids
    for j = 1, #ids do
      local x = record.load_all(p, ids[j])
      queue.note(p, old, ids[j], false)
      if x then
        if lane.moving == 2 then queue.note(p, order.tenant(p, lane, x), x.id, false) end
        record.write(p, x, "turn", record.text(p, next_turn(p, x)))
        queue.note(p, keys.queue(p, lane.no, cap), x.id, order.score(lane, x))
        if order.by_tenant(lane) then queue.note(p, order.tenant(p, lane, x), x.id, order.age(lane, x)) end
      end
    end
    limit = limit - #ids
    if limit <= 0 then return false end
  end
  lane.moving = nil
  lanes.order_changed(p, lane)
  local keyed, aged = string.match(lanes.noted(p, "w" .. lane.no), "^(%d) (%d+)$")
  if keyed then
    lanes.note(p, "w" .. lane.no, "")
    if (keyed == "1") ~= lane.keyed or tonumber(aged) ~= (lane.aged or 0) then queue.order(p, lane, keyed == "1", tonumber(aged)) end
  end
  return true
end
