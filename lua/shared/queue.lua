-- shared/queue.lua -- the ready executions of a lane, in the order they are claimed.
--
-- A queue is one (lane, capability set, admission set); its members are ordered by priority band, then by turn, or by age where the
-- lane says so (shared/order.lua). Turns are start-time fair queueing: a fairness key's next job takes the later of
-- the lane's virtual time and the key's own finish, so a key that floods a lane queues behind itself, and everybody
-- else does not. Without fairness keys there is one tenant, and a turn is a plain sequence: strict FIFO.
-- Order is exact within a partition, statistical across partitions.
--
-- Jobs that nothing has to admit stand in the queue of their capability set alone; lanes that have no others look at
-- nothing else. Queues of admission sets are found by way of rings (shared/admission.lua).

local queue = {}
do -- helpers of this file; a chunk holds 200 locals

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
  if p.ring_writes then admission.flush(p) end
  local all = p.index_writes
  if not all then return end
  p.index_writes = nil
  for i = 1, #all do timers.write(all[i], all[all[i]]) end
end

-- Classes of a lane with an admission set, beside the plain ones: those in rings, then those that are halted.
local function classes_of(p, lane, sets)
  local out = {}
  for i = 1, #sets do
    local open, shut = redis.call("ZRANGE", keys.ring(p, lane.no, sets[i]), 0, -1), redis.call("ZRANGE", keys.shut(p, lane.no, sets[i]), 0, -1)
    for j = 1, #open do out[#out + 1] = { sets[i] .. "." .. open[j] } end
    for j = 1, #shut do out[#out + 1] = { sets[i] .. "." .. shut[j], true } end
  end
  table.sort(out, function(l, r) return l[1] < r[1] end)
  return out
end

-- Every key that holds ready jobs of a lane: { class, key, a word for it }, with `rest` for what stands in an order that is
-- being left, and `shut` for what is halted. While the lane is ordered anew
-- what has not moved yet stands in the key of the old order, behind; its word comes after "ready", because a walk goes by
-- words (shared/walk.lua) and what is put aside must not come to stand where it has been.
function queue.sources(p, lane)
  local sets, out = lane.revision > 0 and redis.call("HKEYS", keys.caps(p, lane.no)) or {}, {}
  table.sort(sets)
  table.insert(sets, 1, "-")
  for i = 1, #sets do out[i] = { sets[i], keys.queue(p, lane.no, sets[i]), "ready:" .. sets[i] } end
  if lane.classed > 0 then
    local classes = classes_of(p, lane, sets)
    for i = 1, #classes do
      local class = classes[i][1]
      out[#out + 1] = { class, keys.queue(p, lane.no, class), "ready:" .. class, shut = classes[i][2] }
    end
  end
  if lane.moving then
    local aside = redis.call("ZRANGE", keys.aside(p, lane.no), 0, -1)
    for i = 1, #aside do sets[#sets + 1] = aside[i] end
    for i = 1, #sets do out[#out + 1] = { sets[i], keys.before(p, lane.no, sets[i]), "rest:" .. sets[i], rest = true } end
  end
  return out
end

-- Whether a claim would find anything under a capability set.
function queue.any(p, lane, cap)
  return redis.call("EXISTS", keys.queue(p, lane.no, cap)) == 1
    or lane.moving ~= nil and redis.call("EXISTS", keys.before(p, lane.no, cap)) == 1
    or lane.classed > 0 and admission.head(p, lane, cap) ~= nil
end

-- Whether anything stands under it, halted or put aside too.
local function in_use(p, lane, cap)
  if queue.any(p, lane, cap) then return true end
  if lane.classed == 0 then return false end
  if redis.call("EXISTS", keys.ring(p, lane.no, cap)) == 1 or redis.call("EXISTS", keys.shut(p, lane.no, cap)) == 1 then return true end
  local aside = lane.moving and redis.call("ZRANGE", keys.aside(p, lane.no), 0, -1) or {}
  for i = 1, #aside do if string.match(aside[i], "^[^.]+") == cap then return true end end
  return false
end

-- How many ready jobs of a lane stand in queues of admission sets; found by looking, whatever is counted.
function queue.count_classes(p, lane)
  local was, n = lane.classed, 0
  lane.classed = 1
  local sources = queue.sources(p, lane)
  lane.classed = was
  for i = 1, #sources do
    if string.find(sources[i][1], ".", 1, true) then n = n + redis.call("ZCARD", sources[i][2]) end
  end
  return n
end

-- Where a queued record stands: key and score.
function queue.place(p, x)
  local lane, class = lanes.of(p, x.lane), order.class(x)
  if lane.moving then
    local old = redis.call("ZSCORE", keys.before(p, lane.no, class), x.id)
    if old then return keys.before(p, lane.no, class), tonumber(old) end
  end
  return keys.queue(p, lane.no, class), order.score(lane, x)
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
      local head = redis.call("ZRANGE", keys.queue(p, lane.no, order.class(x)), 0, 0, "WITHSCORES")
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
  local weight = lanes.weight(p, lane, x.fair)
  if weight == 1 and turn % 1 == 0 then
    at[x.fair] = turn + UNIT
    queue.note(p, key, x.fair, turn + UNIT)
    return turn
  end
  -- In steps of 2^-9: below 2^44 such a sum is exact. A turn is whole, a finish need not be.
  finish = turn + math.max(1, math.floor(UNIT / weight * 512 + 0.5)) / 512
  at[x.fair] = finish
  queue.note(p, key, x.fair, string.format("%.9f", finish))
  return math.floor(turn)
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
        if not in_use(p, lane, known[i]) then
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
  local class, score = x.adm and order.class(x) or cap, order.score(lane, x)
  queue.note(p, keys.queue(p, x.lane, class), x.id, score)
  if order.by_tenant(lane) then queue.note(p, order.tenant(p, lane, x), x.id, order.age(lane, x))
  elseif lane.moving == 2 then queue.note(p, order.tenant(p, lane, x), x.id, false) end
  if lane.moving then queue.note(p, keys.before(p, x.lane, class), x.id, false) end
  -- Nobody is rung for what is halted.
  if class == cap or admission.enter(p, lane, cap, x.adm, score) then wake.ring(p, x.lane, cap) end
end

function queue.leave(p, x)
  if x.popped then
    x.popped = nil
  else
    local lane, class = lanes.of(p, x.lane), x.adm and order.class(x) or x.cap or "-"
    queue.note(p, keys.queue(p, x.lane, class), x.id, false)
    if lane.aged and lane.keyed or lane.moving == 2 then queue.note(p, order.tenant(p, lane, x), x.id, false) end
    if lane.moving then queue.note(p, keys.before(p, x.lane, class), x.id, false) end
    if x.adm and not x.pending_outcome then admission.leave(p, lane) end
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

-- The first job of one of the queues compared, looked at when it may have changed.
local function look(p, lane, head)
  head.stale = false
  if head.ring then
    head.adm, head.score = admission.head(p, lane, head.cap)
    if head.adm then head.class = head.cap .. "." .. head.adm end
  else
    head.score = tonumber(redis.call("ZRANGE", keys.queue(p, lane.no, head.class), 0, 0, "WITHSCORES")[2])
  end
end

local function pop_best(p, lane, heads, want)
  local got = {}
  while #got < want * 2 do
    local best
    for i = 1, #heads do
      local head = heads[i]
      if head.stale then look(p, lane, head) end
      if head.score and (not best or head.score < best.score) then best = head end
    end
    if not best then break end
    local one = redis.call("ZPOPMIN", keys.queue(p, lane.no, best.class), 1)
    if order.by_tenant(lane) then order.choose(p, lane, best.class, one) end
    if best.adm then
      admission.leave(p, lane)
      admission.take(p, best.adm)
    end
    best.stale = true
    got[#got + 1], got[#got + 2] = one[1], one[2]
  end
  return got
end

-- Up to `want` jobs of a lane, best first, over the capability sets given: id, score, id, score.
-- Pops them: whoever calls this leases them or puts them back in the same call. One call compares at most HEADS_N
-- queues that hold anything; `start` is another from call to call, so that no set stands behind the others for good.
function queue.pop(p, lane, caps, want, start)
  local sets, heads, compared = queue.served(p, lane, caps), nil, 1
  local classed = lane.classed > 0
  -- Where all that is admitted is halted, plain jobs are popped as if it were not there.
  if classed and redis.call("EXISTS", keys.ring(p, lane.no, "-")) == 1 then
    heads = { { class = "-", stale = true }, { cap = "-", ring = true, stale = true } }
  end
  for i = 0, #sets - 1 do
    local cap = sets[(start + i) % #sets + 1]
    local plain = redis.call("EXISTS", keys.queue(p, lane.no, cap)) == 1
    local ring = classed and redis.call("EXISTS", keys.ring(p, lane.no, cap)) == 1
    if plain or ring then
      heads = heads or { { class = "-", stale = true } }
      if plain then heads[#heads + 1] = { class = cap, stale = true } end
      if ring then heads[#heads + 1] = { cap = cap, ring = true, stale = true } end
      compared = compared + 1
      if compared > LIMITS.HEADS_N then break end
    end
  end
  local got
  if heads then
    got = pop_best(p, lane, heads, want)
  else
    got = redis.call("ZPOPMIN", keys.queue(p, lane.no, "-"), want)
    if order.by_tenant(lane) then order.choose(p, lane, "-", got) end
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

-- What still stands in the old order comes behind what has moved; that of admission sets waits until it has.
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
    popped_score = order.score(lane, whole)
    redis.call("ZADD", keys.queue(p, x.lane, order.class(whole)), popped_score, x.id)
    if order.by_tenant(lane) then redis.call("ZADD", order.tenant(p, lane, whole), order.age(lane, whole), x.id) end
  else
    redis.call("ZADD", keys.queue(p, x.lane, order.class(x)), popped_score, x.id)
  end
  if x.adm and not x.pending_outcome then admission.put_back(p, lane, x.cap or "-", x.adm, popped_score) end
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
  for i = 1, #aside do
    if string.find(aside[i][1], ".", 1, true) then redis.call("ZADD", keys.aside(p, lane.no), 0, aside[i][1]) end
    redis.call("RENAME", aside[i][2], keys.before(p, lane.no, aside[i][1]))
  end
  if spent[1] then redis.call("UNLINK", unpack(spent)) end
end

-- Move up to `limit` ready jobs over; whether all have moved.
function queue.move_over(p, lane, limit)
  queue.flush(p)   -- what has left the queue earlier in this call must not be brought back
  local sources = queue.sources(p, lane)
  for i = 1, #sources do
    local class, old = sources[i][1], sources[i][2]
    local ids = sources[i].rest and redis.call("ZRANGE", old, 0, limit - 1) or {}
    p.moved_n = (p.moved_n or 0) + #ids
    for j = 1, #ids do
      local x = record.load_all(p, ids[j])
      queue.note(p, old, ids[j], false)
      if x then
        if lane.moving == 2 then queue.note(p, order.tenant(p, lane, x), x.id, false) end
        record.write(p, x, "turn", record.text(p, next_turn(p, x)))
        queue.note(p, keys.queue(p, lane.no, class), x.id, order.score(lane, x))
        if order.by_tenant(lane) then queue.note(p, order.tenant(p, lane, x), x.id, order.age(lane, x)) end
        if order.class(x) ~= (x.cap or "-") then
          admission.leave(p, lane)   -- it was counted where it stood
          if admission.enter(p, lane, x.cap or "-", x.adm, order.score(lane, x)) then wake.ring(p, lane.no, x.cap or "-") end
        end
      end
    end
    limit = limit - #ids
    if limit <= 0 then return false end
  end
  lane.moving = nil
  redis.call("UNLINK", keys.aside(p, lane.no))
  lanes.order_changed(p, lane)
  local keyed, aged = string.match(lanes.noted(p, "w" .. lane.no), "^(%d) (%d+)$")
  if keyed then
    lanes.note(p, "w" .. lane.no, "")
    if (keyed == "1") ~= lane.keyed or tonumber(aged) ~= (lane.aged or 0) then queue.order(p, lane, keyed == "1", tonumber(aged)) end
  end
  return true
end

end
