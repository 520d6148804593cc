-- lane.lua -- lanes seen by people: names, states, counts. What they are told is settings.lua.

local MOVED_N = 50   -- jobs one call moves, of however many lanes: about a millisecond

-- A lane's queues are being ordered anew: the next piece.
due.on("order", function(p, no)
  local lane, left = lanes.of(p, no), MOVED_N - (p.moved_n or 0)
  if lane.moving and (left <= 0 or not queue.move_over(p, lane, left)) then timers.set(p, "order", no, p.now) end
end)

define {
  name    = "ff_list_lanes",
  args    = { "after:str?", "limit:int" },
  returns = { "lanes" },
  errors  = { "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local names, known = {}, redis.call("HKEYS", keys.lanes(p))
    for i = 1, #known do
      if string.sub(known[i], 1, 1) ~= "#" and (not a.after or known[i] > a.after) then names[#names + 1] = known[i] end
    end
    table.sort(names)
    local page = {}
    for i = 1, math.min(#names, a.limit) do
      local lane = lanes.named(p, names[i], false)
      page[i] = { names[i], lane.state, tostring(lane.no) }
    end
    return { "lanes", page, #names > a.limit and page[#page][1] or "" }
  end,
}

-- Counts of a lane in this partition by stored state, and since when its oldest ready job waits.
define {
  name    = "ff_lane_stats",
  args    = { "lane_id:str" },
  returns = { "lane_stats" },
  errors  = { "lane_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local lane = lanes.named(p, a.lane_id, false)
    if not lane then return reply.reject("lane_not_found", a.lane_id) end
    local sources, ready, oldest = queue.sources(p, lane), 0, 0
    for i = 1, #sources do
      local key = sources[i][2]
      ready = ready + redis.call("ZCARD", key)
      local head = redis.call("ZRANGE", key, 0, 0)[1]
      local created = head and tonumber(redis.call("HGET", keys.core(p, head), "c") or "0") or 0
      if created > 0 and (oldest == 0 or created < oldest) then oldest = created end
    end
    local parked = redis.call("ZCOUNT", keys.park(p, lane.no, "-"), p.now, "+inf")
    local counts = { "ready", ready }
    counts[3], counts[4] = "active", lane.active
    local words = { "granted", "delayed", "blocked", "suspended", "completed", "failed", "cancelled", "expired", "skipped" }
    for i = 1, #words do
      counts[#counts + 1] = words[i]
      counts[#counts + 1] = redis.call("ZCARD", keys.index(p, lane.no, words[i]))
    end
    return { "lane_stats", lane.state, counts, oldest, parked, p.now }
  end,
}
