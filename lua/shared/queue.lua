-- shared/queue.lua -- the ready executions of a lane, in the order they are claimed.
--
-- A queue is one (lane, capability set); its members are ordered by priority band, then by turn. Turns
-- are start-time fair queueing: a fairness key's next job takes the later of the lane's virtual time and
-- the key's own finish, so a key that floods a lane queues behind itself, and everybody else does not.
-- Without fairness keys there is one tenant, and a turn is a plain sequence: strict FIFO.
-- Order is exact within a partition, statistical across partitions.

local queue = {}

local BAND = 17592186044416   -- 2^44 turns in a band; 201 bands stay below 2^52
local UNIT = 16               -- virtual time one job costs at weight 1

local function band(x) return LIMITS.PRIORITY_MAX - record.number(x, "priority") end
local function score(x) return band(x) * BAND + record.number(x, "turn") end
function queue.score(x) return score(x) end

-- Collected index writes, one ZADD and one ZREM per index and call.
function queue.note(p, key, id, value)
  local all = p.index_writes
  if not all then
    all = { at = {}, order = {} }
    p.index_writes = all
  end
  local set = all.at[key]
  if not set then
    set = { at = {}, order = {}, n = 0 }
    all.at[key] = set
    all.order[#all.order + 1] = key
  end
  timers.note(set, id, value)
end

function queue.flush(p)
  local all = p.index_writes
  if not all then return end
  p.index_writes = nil
  for i = 1, #all.order do timers.write(all.order[i], all.at[all.order[i]]) end
end

-- The next turn of a lane for a job. Virtual time and finishes are kept per band, in one small set:
-- member "-" is the lane's virtual time, every other member a fairness key's finish.
local function next_turn(p, x)
  local lane = lanes.of(p, x.lane)
  local turn = lane.turn
  if x.fair and not lane.keyed then
    -- First fairness key of the lane: newcomers start level with what is served next, not with zero.
    lane.keyed = true
    lanes.note(p, "k" .. lane.no, 1)
  end
  if not lane.keyed then
    lane.turn = turn + UNIT
    lanes.changed(p, lane)
    return turn
  end
  local key = keys.turns(p, lane.no, band(x))
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
        if redis.call("EXISTS", keys.queue(p, lane.no, known[i])) == 0 then
          redis.call("HDEL", key, known[i])
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
  local cap = x.cap or "-"
  if x.cap then known_set(p, x) end
  queue.note(p, keys.queue(p, x.lane, cap), x.id, score(x))
  wake.ring(p, x.lane, cap)
end

function queue.leave(p, x)
  if x.popped then
    x.popped = nil
  else
    queue.note(p, keys.queue(p, x.lane, x.cap or "-"), x.id, false)
  end
end

-- A job that becomes eligible for the first time, or after a delay, takes a turn; one that only comes
-- back (handed back, resumed, reclaimed, unblocked) keeps its own.
function queue.turn(p, x, fresh)
  if not fresh and x.turn then return x.turn end
  return record.text(p, next_turn(p, x))
end

-- Those of a caller's capability sets that the lane's table knows, in the caller's order. Nothing waits under any
-- other, and a set that enters the table rings the lane's idle workers. `caps` is the same for a whole call.
local NO_SETS = {}
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
  for i = 0, #sets - 1 do
    local key = keys.queue(p, lane.no, sets[(start + i) % #sets + 1])
    if redis.call("EXISTS", key) == 1 then
      heads[#heads + 1] = key
      if #heads > LIMITS.HEADS_N then break end
    end
  end
  local got
  if #heads == 1 then
    got = redis.call("ZPOPMIN", heads[1], want)
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
  return got
end

-- Put a popped job back where it was.
function queue.put_back(p, x, popped_score)
  redis.call("ZADD", keys.queue(p, x.lane, x.cap or "-"), popped_score, x.id)
end
