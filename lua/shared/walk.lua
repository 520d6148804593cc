-- shared/walk.lua -- go through every record of a partition, a bounded piece per tick.
--
-- A walk touches each record (record.load_all): that brings it up to this release's schema and says which policy it
-- uses. A record that moves while the walk is under way may be passed over by the walk itself, but whoever moved it
-- has touched it. Where a walk stands is kept in the header, so one that is interrupted goes on.

local walk = {}
do -- helpers of this file; a chunk holds 200 locals

local WORDS = { "granted", "delayed", "blocked", "suspended", "completed", "failed", "cancelled", "expired", "skipped" }

-- How many members of an index stand up to a position (score, id), itself included. Any number of jobs may share one
-- instant, and the one the position names may have moved on meanwhile: its place among those of its score is found by halving.
function walk.rank(key, at)
  local below = redis.call("ZCOUNT", key, "-inf", "(" .. at.score)
  local beyond = below + redis.call("ZCOUNT", key, at.score, at.score)
  while below < beyond do
    local middle = math.floor((below + beyond) / 2)
    if redis.call("ZRANGE", key, middle, middle)[1] <= at.id then below = middle + 1 else beyond = middle end
  end
  return below
end

-- Members of an index behind a position, newest first (`up`: oldest first).
function walk.page(key, after, want, up)
  local start = 0
  if up then
    if after then start = walk.rank(key, after) end
    return redis.call("ZRANGE", key, start, start + want - 1, "WITHSCORES")
  end
  if after then
    local above = redis.call("ZCOUNT", key, "(" .. after.score, "+inf")
    local beyond = above + redis.call("ZCOUNT", key, after.score, after.score)
    while above < beyond do
      local middle = math.floor((above + beyond) / 2)
      if redis.call("ZRANGE", key, middle, middle, "REV")[1] >= after.id then above = middle + 1 else beyond = middle end
    end
    start = above
  end
  return redis.call("ZRANGE", key, start, start + want - 1, "REV", "WITHSCORES")
end

-- Where records of a lane stand, in the order of the words: { word, key }. Lane 0 stands for what runs, of any lane.
local function sources(p, number)
  if number == "0" then return { { "active", keys.leases(p) } } end
  local out, ready = {}, queue.sources(p, lanes.of(p, number))
  for i = 1, #WORDS do out[#out + 1] = { WORDS[i], keys.index(p, number, WORDS[i]) } end
  for i = 1, #ready do out[#out + 1] = { ready[i][3], ready[i][2] } end
  table.sort(out, function(l, r) return l[1] < r[1] end)
  return out
end

-- Touch up to about `limit` records from where the walk stands. Answers how many, and whether it has come to the end.
function walk.step(p, name, limit)
  local field, done = "walk_" .. name, 0
  local number, word, score, id = string.match(lanes.noted(p, field), "^(%d+) (%S+) (%S+) (%S+)$")
  -- Each lane but the one it stands in costs at least one: more of them than this call cannot come to.
  local numbers = lanes.numbers(p, tonumber(number or "0"), limit + 1)
  if not number or number == "0" then table.insert(numbers, 1, "0") end
  for l = 1, #numbers do
    local here = sources(p, numbers[l])
    for s = 1, #here do
      local same = number == numbers[l]
      if not same or here[s][1] >= word then
        local after = same and here[s][1] == word and { score = score, id = id } or nil
        local got = walk.page(here[s][2], after, limit)
        for i = 1, #got, 2 do record.load_all(p, got[i]) end
        -- A place that was looked at for nothing costs something too.
        done, limit = done + #got / 2, limit - math.max(1, #got / 2)
        if limit <= 0 then
          local last = #got
          if last > 0 then lanes.note(p, field, numbers[l] .. " " .. here[s][1] .. " " .. got[last] .. " " .. got[last - 1])
          else lanes.note(p, field, numbers[l] .. " " .. here[s][1] .. " -inf -") end
          return done, false
        end
      end
    end
  end
  redis.call("HDEL", p.key, field)
  return done, true
end

reap.on("walk", function(p, name, limit)
  local done, finished = 1, true
  if name == "policies" and not p.marking or name == "records" and not p.records then return done end
  if p.marking ~= "sweep" or name ~= "policies" then done, finished = walk.step(p, name, math.min(limit, LIMITS.TICK_N)) end
  if name == "policies" then finished = policy.walked(p, finished)
  elseif finished then
    redis.call("HDEL", p.key, "records")
    p.records = nil
  end
  if not finished then timers.reap(p, "walk", name, p.now) end
  return done
end)

end
