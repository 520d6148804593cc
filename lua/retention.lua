-- retention.lua -- forget what ended long enough ago, in bounded pieces.
--
-- Forgotten by itself: terminal and older than RETENTION_MIN_AGE_MS; by an operator's hand: terminal. By age, count and
-- bytes per lane, oldest first. A member of a flow is kept as long as its flow is: by age, counted from the flow's end,
-- or until the lane is over its limits and members of the flow are its oldest. Lanes pass over members.

local LOOK_N = 2000   -- members of flows one purge by hand passes over
local OUTCOMES = { "completed", "failed", "cancelled", "expired", "skipped" }
local LIVE = { "granted", "delayed", "blocked", "suspended" }

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

-- ---- members of flows --------------------------------------------------------------------------------
-- They go with their flow. A lane passes over them, and remembers how far: before such a place stand members alone, so
-- that no call looks at them again and what ended behind them is not kept by them.

-- The place in each index: outcome -> { score, id }. Written as "score id" for each outcome, "- -" for none.
local function read_passed(p, lane_no)
  local passed, i = {}, 0
  for score, id in string.gmatch(lanes.noted(p, "g" .. lane_no), "(%S+) (%S+)") do
    i = i + 1
    if id ~= "-" then passed[OUTCOMES[i]] = { score = score, id = id } end
  end
  return passed
end

local function note_passed(p, lane_no, passed)
  local out = {}
  for i = 1, #OUTCOMES do
    local place = passed[OUTCOMES[i]]
    out[i] = place and place.score .. " " .. place.id or "- -"
  end
  lanes.note(p, "g" .. lane_no, table.concat(out, " "))
end

-- Whether a record is kept by its flow.
local function flow_of(p, x) return x.flow and flows.load(p, x.flow) or nil end

-- The oldest terminal records of a lane that may not be members of flows, over its outcomes: up to `limit` of each as
-- { ended_at, id, outcome }.
local function oldest(p, lane_no, passed, limit)
  local all = {}
  for i = 1, #OUTCOMES do
    local got = walk.page(keys.index(p, lane_no, OUTCOMES[i]), passed[OUTCOMES[i]], limit, true)
    for j = 1, #got, 2 do all[#all + 1] = { tonumber(got[j + 1]), got[j], OUTCOMES[i] } end
  end
  table.sort(all, function(l, r) return l[1] < r[1] or (l[1] == r[1] and l[2] < r[2]) end)
  return all
end

-- Go through up to `limit` records of a lane, purging what is due. Answers how many, and when to look again (nil: nothing
-- is left).
local function purge_lane(p, lane_no, limit)
  local age, count, bytes = settings(p, lane_no)
  local spare = count > 0 and total(p, lane_no) - count or 0
  local passed, stepped = read_passed(p, lane_no), false
  local candidates, looked, gone, again = oldest(p, lane_no, passed, limit), 0, 0, nil
  local lane = lanes.of(p, lane_no)
  local over = lane.bytes and bytes > 0 and lane.bytes - bytes or 0
  for i = 1, math.min(#candidates, limit) do
    local ended, id, outcome = unpack(candidates[i])
    local old_enough = ended <= p.now - LIMITS.RETENTION_MIN_AGE_MS
    local due_by_age = age > 0 and ended <= p.now - age
    if not old_enough or not due_by_age and spare <= 0 and over <= 0 then
      -- Without an age limit time alone makes nothing purgeable: look again in a while, not at once.
      again = not old_enough and ended + LIMITS.RETENTION_MIN_AGE_MS or (age > 0 and ended + age) or p.now + LIMITS.RETENTION_MIN_AGE_MS
      break
    end
    local x = record.load_all(p, id)
    local f = x and flow_of(p, x)
    if f and not due_by_age then
      -- The lane is over what it may keep, and these are its oldest: their flow goes now, if it may, and what came later
      -- is left alone until it has gone.
      if f.state == "ended" and purge.may(p, f) then purge.begin(p, f) end
      if f.state == "purging" then
        again = p.now + 1000
        break
      end
    end
    looked = looked + 1
    if f then
      passed[outcome], stepped = { score = record.text(p, ended), id = id }, true
    else
      if x then
        over = over - record.number(x, "size")
        purge.forget(p, x)
      end
      queue.note(p, keys.index(p, lane_no, outcome), id, false)
      gone, spare = gone + 1, spare - 1
    end
  end
  if not again and (looked == limit or looked < #candidates) then
    -- Looking at members alone is no haste: an index may be long.
    again = p.now + (gone == 0 and 1000 or 0)
    if stepped then note_passed(p, lane_no, passed) end
  elseif stepped or next(passed) then
    -- Of a lane with limits of count or bytes, the flows that live now may have ended when it is looked at again.
    if count > 0 or bytes > 0 then lanes.note(p, "g" .. lane_no, "")
    elseif stepped then note_passed(p, lane_no, passed) end
    again = again or total(p, lane_no) > 0 and p.now + LIMITS.RETENTION_MIN_AGE_MS or nil
  end
  return looked, again
end

reap.on("lane", function(p, lane_no, limit)
  local looked, again = purge_lane(p, lane_no, math.min(limit, LIMITS.TICK_N))
  -- Count and byte limits can be passed before the oldest grows old: look once a minute.
  if again then timers.reap(p, "lane", lane_no, math.max(p.now, math.min(again, p.now + LIMITS.RETENTION_MIN_AGE_MS))) end
  return looked
end)

-- ---- whole flows -------------------------------------------------------------------------------------

local HOUR_MS = 3600000   -- how often one that is not due is looked at: its lane's settings may have changed

-- When a flow's age is over: from its end, or from the cancel that only kept it from starting more. By the setting of its
-- first member's lane; nil: that lane keeps things for good, until it has too many.
local function flow_due(p, f)
  local age = settings(p, f.lane or "0")
  if age == 0 then return nil end
  return math.max(f.ended_at + LIMITS.RETENTION_MIN_AGE_MS, (f.policy == "flow_only" and f.cancelled_at or f.ended_at) + age)
end

-- What a cancel of the flow alone has kept from starting is cancelled one by one before it is purged, some at a time. While
-- others still run they are left alone.
local function end_members(p, f, limit)
  local after = redis.call("HGET", f.key, "ra") or "0"
  local got = redis.call("ZRANGE", keys.members(p, f.id), "(" .. after, "+inf", "BYSCORE", "LIMIT", 0, limit, "WITHSCORES")
  for i = 1, #got, 2 do
    local x = record.load(p, got[i])
    if x and not state.is_terminal(x.state) and (f.state == "ended" or not x.started_at) then cascade.cancel_member(p, x, "its flow was cancelled and is being purged", "flow_cascade") end
  end
  if #got == 2 * limit then redis.call("HSET", f.key, "ra", got[#got]) else redis.call("HDEL", f.key, "ra") end
  -- What runs is asked and has its grace, and those that have ended by this are to be seen for a while.
  timers.reap(p, "flow", f.id, #got == 2 * limit and p.now or p.now + LIMITS.RETENTION_MIN_AGE_MS)
  return #got / 2
end

reap.on("flow", function(p, fid, limit)
  local f = flows.load(p, fid)
  if not f or f.state == "staging" or f.state == "live" and f.members > 0 and f.policy ~= "flow_only" then return 1 end   -- its end arms it
  if f.state == "live" and f.members == 0 then
    -- Created, and never given a member.
    if f.created_at + LIMITS.RETENTION_AGE_MS > p.now then
      timers.reap(p, "flow", fid, f.created_at + LIMITS.RETENTION_AGE_MS)
      return 1
    end
    purge.begin(p, f)
  end
  if f.state ~= "purging" then
    local at = flow_due(p, f)
    if not at or at > p.now then
      timers.reap(p, "flow", fid, math.min(at or p.now + HOUR_MS, p.now + HOUR_MS))
      return 1
    end
    if f.state == "live" or flows.alive(f) + f.resolving > 0 then return end_members(p, f, math.min(limit, purge.PAGE_N)) end
    purge.begin(p, f)
  end
  return purge.page(p, f, math.min(limit, purge.PAGE_N))
end)

-- A graph whose last chunk never came.
due.on("staging", function(p, fid)
  local f = flows.load(p, fid)
  if f and f.state == "staging" then purge.begin(p, f) end
end)

-- Whether a lane says nothing any more: no job in any state, no setting of its own, nobody parked.
local function is_idle(p, lane)
  if lane.active > 0 or lane.moving or lane.aged or lane.most or lane.classed > 0 or lane.state ~= "active" then return false end
  if redis.call("ZCOUNT", keys.park(p, lane.no, "-"), p.now, "+inf") > 0 then return false end
  local age, count, bytes = settings(p, lane.no)
  if redis.call("EXISTS", keys.weights(p, lane.no)) == 1 or lanes.noted(p, "x" .. lane.no) ~= "" then return false end
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
  local function also(set)
    left[#left + 1], left[#left + 2], left[#left + 3] = keys.park(p, no, set), keys.ring(p, no, set), keys.shut(p, no, set)
  end
  also("-")
  for i = 1, #known do also(known[i]) end
  for i = 1, #strays do also(strays[i]) end
  left[#left + 1] = keys.aside(p, no)
  if lane.keyed then for b = 0, LIMITS.PRIORITY_MAX - LIMITS.PRIORITY_MIN do left[#left + 1] = keys.turns(p, no, b) end end
  redis.call("UNLINK", unpack(left))
  redis.call("HDEL", keys.lanes(p), name, "#" .. no)
  redis.call("HDEL", p.key, "s" .. no, "f" .. no, "k" .. no, "c" .. no, "a" .. no, "r" .. no, "y" .. no, "w" .. no, "e" .. no, "g" .. no, "z" .. no, "u" .. no, "h" .. no, "x" .. no, "m" .. no)
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
  local dead = redis.call("ZRANGE", keys.workers(p), "-inf", p.now - LIMITS.DEAD_WORKERS_MS, "BYSCORE", "LIMIT", 0, 100)
  if #dead == 0 then
    -- None is that old: of too many, the longest dead go.
    local many = redis.call("ZCOUNT", keys.workers(p), "-inf", p.now) - LIMITS.DEAD_WORKERS_N
    if many > 0 then dead = redis.call("ZRANGE", keys.workers(p), 0, math.min(many, 100) - 1) end
  end
  for i = 1, #dead do
    redis.call("ZREM", keys.workers(p), dead[i])
    redis.call("UNLINK", keys.worker(p, dead[i]))
  end
  if redis.call("ZCARD", keys.workers(p)) > 0 then timers.reap(p, "workers", id, #dead == 100 and p.now or p.now + LIMITS.WAITER_MS) end
  return #dead
end)

-- Purge now, by an operator's filter: terminal records of a lane and outcome that ended before a time.
-- Bounded and repeatable; `dry_run` only counts. Members of flows are passed over: they go with their flow.
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
    local passed, looked, kept, stepped = read_passed(p, lane.no), 0, 0, false
    local at, done, found = passed[a.outcome], false, {}
    local matching = redis.call("ZCOUNT", key, "-inf", before) - (at and walk.rank(key, at) or 0)
    while not done and looked < LOOK_N do
      local got = walk.page(key, at, a.limit + 1, true)
      done = #got < 2 * a.limit + 2
      for i = 1, #got, 2 do
        if tonumber(got[i + 1]) > before or #ids == a.limit then
          done = true
          break
        end
        looked, at = looked + 1, { score = got[i + 1], id = got[i] }
        -- Of a member no more is read than that it is one: there may be many.
        local fid = redis.call("HGET", keys.core(p, got[i]), record.short("flow"))
        local x = not (fid and flows.load(p, fid)) and record.load_all(p, got[i])
        if x == false then
          kept = kept + 1
          -- Nothing but members up to here; but in this instant others may end yet, with a place before this one.
          if #ids == 0 and tonumber(got[i + 1]) < p.now then passed[a.outcome], stepped = at, true end
        else
          ids[#ids + 1], found[#ids + 1] = p.id_prefix .. got[i], x or { id = got[i], gone = true }
        end
      end
    end
    -- Whether flows keep what is beyond one look is not known.
    local left = math.max(0, matching - kept)
    if a.dry_run then return { "purged", ids, left } end
    for i = 1, #found do
      if not found[i].gone then purge.forget(p, found[i]) end
      queue.note(p, key, found[i].id, false)
    end
    if stepped then note_passed(p, lane.no, passed) end
    return { "purged", ids, left - #ids }
  end,
}
