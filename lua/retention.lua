-- retention.lua -- forget what ended long enough ago, in bounded pieces.
--
-- Forgotten by itself: terminal and older than RETENTION_MIN_AGE_MS; by an operator's hand: terminal. A keyed execution leaves a
-- tombstone (id and digest) for its dedup window, so that its key stays taken; an un-keyed one leaves
-- nothing. By age, count and bytes per lane, oldest first.

local OUTCOMES = { "completed", "failed", "cancelled", "expired", "skipped" }
local LIVE = { "granted", "delayed", "blocked", "suspended" }

-- Remove one terminal record and everything that hangs on it.
local function forget(p, x)
  local lane = lanes.of(p, x.lane)
  if lane.bytes and x.size then
    lane.bytes = math.max(0, lane.bytes - tonumber(x.size))
    lanes.note(p, "y" .. lane.no, lane.bytes)
  end
  redis.call("UNLINK", keys.core(p, x.id), keys.payload(p, x.id), keys.result(p, x.id), keys.detail(p, x.id),
    keys.attempts(p, x.id), keys.waiters(p, x.id), keys.journal(p, x.id), keys.suspension(p, x.id), keys.summary(p, x.id),
    keys.waitpoints(p, x.id), keys.signals(p, x.id))
  if x.streams then stream.forget(p, x) end
  if string.sub(x.id, 15, 15) == "8" then
    local window = policy.field(policy.of(p, x), "dedup_window_ms") or LIMITS.DEDUP_WINDOW_MS
    local until_ms = record.number(x, "at") + window
    if until_ms > p.now then
      redis.call("HSET", keys.tombs(p, x.id), x.id, string.format("%.0f ", until_ms) .. (x.digest or ""))
      timers.reap_first(p, "tomb", string.sub(x.id, -3), until_ms)
    end
  end
end

-- The oldest terminal records of a lane, over its outcomes: up to `limit` of { ended_at, id, outcome }.
local function oldest(p, lane_no, limit)
  local all = {}
  for i = 1, #OUTCOMES do
    local got = redis.call("ZRANGE", keys.index(p, lane_no, OUTCOMES[i]), 0, limit - 1, "WITHSCORES")
    for j = 1, #got, 2 do all[#all + 1] = { tonumber(got[j + 1]), got[j], OUTCOMES[i] } end
  end
  table.sort(all, function(l, r) return l[1] < r[1] or (l[1] == r[1] and l[2] < r[2]) end)
  return all
end

local function settings(p, lane_no)
  local text = redis.call("HGET", p.key, "r" .. lane_no)
  local age, count, bytes = string.match(text or "", "^(%d+) (%d+) (%d+)$")
  return tonumber(age or LIMITS.RETENTION_AGE_MS), tonumber(count or "0"), tonumber(bytes or "0")
end

local function total(p, lane_no)
  local n = 0
  for i = 1, #OUTCOMES do n = n + redis.call("ZCARD", keys.index(p, lane_no, OUTCOMES[i])) end
  return n
end

-- Purge up to `limit` records of a lane. Answers how many went, and when to look again (nil: nothing left).
local function purge(p, lane_no, limit)
  local age, count, bytes = settings(p, lane_no)
  local spare = count > 0 and total(p, lane_no) - count or 0
  local candidates, gone, again = oldest(p, lane_no, limit), 0, nil
  local lane = lanes.of(p, lane_no)
  local over = lane.bytes and bytes > 0 and lane.bytes - bytes or 0
  for i = 1, math.min(#candidates, limit) do
    local ended, id, outcome = unpack(candidates[i])
    local old_enough = ended <= p.now - LIMITS.RETENTION_MIN_AGE_MS
    local due_by_age = age > 0 and ended <= p.now - age
    if old_enough and (due_by_age or spare > 0 or over > 0) then
      local x = record.load_all(p, id)
      if x then
        over = over - record.number(x, "size")
        forget(p, x)
      end
      queue.note(p, keys.index(p, lane_no, outcome), id, false)
      gone, spare = gone + 1, spare - 1
    else
      -- Without an age limit time alone makes nothing purgeable: look again in a while, not at once.
      again = not old_enough and ended + LIMITS.RETENTION_MIN_AGE_MS or (age > 0 and ended + age) or p.now + LIMITS.RETENTION_MIN_AGE_MS
      break
    end
  end
  if gone == limit or #candidates > limit and not again then again = p.now end
  return gone, again
end

reap.on("lane", function(p, lane_no, limit)
  local gone, again = purge(p, lane_no, math.min(limit, LIMITS.TICK_N))
  -- Count and byte limits can be passed before the oldest grows old: look once a minute.
  if again then timers.reap(p, "lane", lane_no, math.max(p.now, math.min(again, p.now + LIMITS.RETENTION_MIN_AGE_MS))) end
  return gone
end)

-- Whether a lane says nothing any more: no job in any state, no setting of its own, nobody parked.
local function is_idle(p, lane)
  if lane.active > 0 or lane.moving or lane.aged or lane.state ~= "active" then return false end
  if redis.call("ZCOUNT", keys.park(p, lane.no, "-"), p.now, "+inf") > 0 then return false end
  local age, count, bytes = settings(p, lane.no)
  if age ~= LIMITS.RETENTION_AGE_MS or count > 0 or bytes > 0 or total(p, lane.no) > 0 then return false end
  for i = 1, #LIVE do if redis.call("EXISTS", keys.index(p, lane.no, LIVE[i])) == 1 then return false end end
  local sources = queue.sources(p, lane)
  for i = 1, #sources do if redis.call("EXISTS", sources[i][2]) == 1 then return false end end
  return true
end

-- Forget a lane that is idle: its rows, its words in the header, and the sets its jobs left. Its number is not given
-- again, because the feed may still name it.
local function forget_lane(p, lane)
  local no, name = lane.no, lanes.name(p, lane.no)
  local known, left = redis.call("HKEYS", keys.caps(p, no)), { keys.caps(p, no), keys.strays(p, no), keys.park(p, no, "-") }
  local strays = redis.call("ZRANGE", keys.strays(p, no), 0, -1)
  for i = 1, #known do left[#left + 1] = keys.park(p, no, known[i]) end
  for i = 1, #strays do left[#left + 1] = keys.park(p, no, strays[i]) end
  if lane.keyed then for b = 0, LIMITS.PRIORITY_MAX - LIMITS.PRIORITY_MIN do left[#left + 1] = keys.turns(p, no, b) end end
  redis.call("UNLINK", unpack(left))
  redis.call("HDEL", keys.lanes(p), name, "#" .. no)
  redis.call("HDEL", p.key, "s" .. no, "f" .. no, "k" .. no, "c" .. no, "a" .. no, "r" .. no, "y" .. no, "w" .. no, "e" .. no)
  timers.unreap(p, "lane", no)
  p.lanes[no], p.lane_numbers[name] = nil, nil
  return #left
end

-- Answers about how many records the same time would forget.
reap.on("idle", function(p, no)
  partition.flush(p)   -- so that what the store says is all there is
  local lane = lanes.of(p, no)
  if lanes.name(p, no) == "" then return 1 end
  -- Those who died parked under sets no job required.
  local dead = redis.call("ZRANGE", keys.strays(p, no), "-inf", p.now, "BYSCORE", "LIMIT", 0, LIMITS.ROWS_N)
  for i = 1, #dead do
    -- One that jobs require by now is refreshed no more: whoever is parked under it lives, and the table leads there.
    if redis.call("HEXISTS", keys.caps(p, no), dead[i]) == 0 then redis.call("UNLINK", keys.park(p, no, dead[i])) end
    redis.call("ZREM", keys.strays(p, no), dead[i])
  end
  local more, few = #dead == LIMITS.ROWS_N, redis.call("ZCARD", keys.strays(p, no)) <= LIMITS.ROWS_N
  local weight = 1 + math.floor(#dead / 10)
  if few and is_idle(p, lane) then return weight + math.floor(forget_lane(p, lane) / 10) end
  timers.reap(p, "idle", no, more and p.now or p.now + LIMITS.LANE_IDLE_MS)
  return weight
end)

reap.on("tomb", function(p, bucket)
  local key, soonest = keys.tombs(p, bucket), nil
  local flat = redis.call("HGETALL", key)
  for i = 1, math.min(#flat, 2 * LIMITS.PAGE_MAX_N), 2 do
    local until_ms = tonumber(string.match(flat[i + 1], "^(%d+) ")) or 0
    if until_ms < p.now then redis.call("HDEL", key, flat[i])
    elseif not soonest or until_ms < soonest then soonest = until_ms end
  end
  if #flat > 2 * LIMITS.PAGE_MAX_N then soonest = soonest or p.now end   -- more than one look covers
  if soonest then timers.reap(p, "tomb", bucket, math.max(soonest, p.now + LIMITS.RETENTION_MIN_AGE_MS)) end
  return #flat / 2
end)

reap.on("claim", function(p, slot)
  local kept = redis.call("HGET", keys.claims(p), slot)
  local at = kept and tonumber(string.match(kept, "^%d+ (%d+) "))
  if at and at > p.now - 2 * LIMITS.LEASE_TTL_MS then
    timers.reap(p, "claim", slot, at + 2 * LIMITS.LEASE_TTL_MS + 1)
  else
    redis.call("HDEL", keys.claims(p), slot)
  end
  return 1
end)

reap.on("waiters", function(p, id)
  local key = keys.waiters(p, id)
  redis.call("ZREMRANGEBYSCORE", key, "-inf", "(" .. string.format("%.0f", p.now))
  local last = redis.call("ZRANGE", key, -1, -1, "WITHSCORES")
  if last[2] then timers.reap(p, "waiters", id, tonumber(last[2]) + 1000) end
  return 1
end)

reap.on("workers", function(p, id)
  local dead = redis.call("ZRANGE", keys.workers(p), "-inf", p.now - LIMITS.WAITER_MS, "BYSCORE", "LIMIT", 0, 100)
  for i = 1, #dead do
    redis.call("ZREM", keys.workers(p), dead[i])
    redis.call("UNLINK", keys.worker(p, dead[i]))
  end
  if redis.call("ZCARD", keys.workers(p)) > 0 then timers.reap(p, "workers", id, p.now + LIMITS.WAITER_MS) end
  return #dead
end)

-- Purge now, by an operator's filter: terminal records of a lane and outcome that ended before a time.
-- Bounded and repeatable; `dry_run` only counts.
define {
  name    = "ff_purge",
  args    = { "lane_id:str", "outcome:str", "before_ms:int", "limit:int", "dry_run:bool" },
  returns = { "purged" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local known = false
    for i = 1, #OUTCOMES do known = known or OUTCOMES[i] == a.outcome end
    if not known then return reply.reject("invalid_input", "outcome") end
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local lane, ids = lanes.named(p, a.lane_id, false), {}
    if not lane then return { "purged", ids, 0 } end
    local key = keys.index(p, lane.no, a.outcome)
    local before = math.min(a.before_ms, p.now)
    if a.dry_run then
      local got = redis.call("ZRANGE", key, "-inf", before, "BYSCORE", "LIMIT", 0, a.limit)
      for i = 1, #got do ids[i] = p.id_prefix .. got[i] end
      return { "purged", ids, redis.call("ZCOUNT", key, "-inf", before) }
    end
    local got = redis.call("ZRANGE", key, "-inf", before, "BYSCORE", "LIMIT", 0, a.limit)
    for i = 1, #got do
      local x = record.load_all(p, got[i])
      if x then forget(p, x) end
      queue.note(p, key, got[i], false)
      ids[i] = p.id_prefix .. got[i]
    end
    queue.flush(p)
    return { "purged", ids, redis.call("ZCOUNT", key, "-inf", before) }
  end,
}
