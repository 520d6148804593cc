-- lane.lua -- lanes seen by people: state, counts, retention.
--
-- active: everything. paused: takes work, starts none. draining: starts work, takes none. disabled: neither.

local STATES = { active = true, paused = true, draining = true, disabled = true }

define {
  name    = "ff_set_lane_state",
  args    = { "lane_id:str", "state:str" },
  returns = { "lane_set" },
  errors  = { "invalid_input", "too_many_names" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not STATES[a.state] then return reply.reject("invalid_input", "state") end
    if not names.is_lane(a.lane_id) then return reply.reject("invalid_input", "lane_id") end
    local lane = lanes.named(p, a.lane_id, true)
    if not lane then return reply.reject("too_many_names", "lanes") end
    local before = lane.state
    if before ~= a.state then
      lane.state = a.state
      lanes.note(p, "s" .. lane.no, a.state)
      events.note(p, "lane " .. a.lane_id .. " " .. before .. " " .. a.state)
      if a.state == "active" or a.state == "draining" then
        for _ = 1, LIMITS.HEADS_N do wake.ring(p, lane.no, "-") end
      end
    end
    return { "lane_set", before, a.state }
  end,
}

-- How long a lane keeps what has ended: by age, by count, by bytes (0: no limit of that kind). Bytes are
-- counted from the moment a byte limit is set.
define {
  name    = "ff_set_lane_retention",
  args    = { "lane_id:str", "age_ms:int", "count:int", "bytes:int" },
  returns = { "retention_set" },
  errors  = { "invalid_input", "too_many_names" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not names.is_lane(a.lane_id) then return reply.reject("invalid_input", "lane_id") end
    if a.age_ms < 0 or a.count < 0 or a.bytes < 0 or a.age_ms > LIMITS.SPAN_MAX_MS then return reply.reject("invalid_input", "retention") end
    local lane = lanes.named(p, a.lane_id, true)
    if not lane then return reply.reject("too_many_names", "lanes") end
    lanes.note(p, "r" .. lane.no, string.format("%.0f %.0f %.0f", a.age_ms, a.count, a.bytes))
    -- A counter that exists is kept up by every end of an execution; without a limit there is none.
    -- Once there is one it stays, limit or not: records say what they added, and taking that off a counter that
    -- began anew would make it fall short.
    if a.bytes > 0 then redis.call("HSETNX", p.key, "y" .. lane.no, 0) end
    timers.reap(p, "lane", lane.no, p.now)
    return { "retention_set" }
  end,
}

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
    for i = 1, math.min(#names, a.limit) do page[i] = { names[i], lanes.named(p, names[i], false).state } end
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
    local caps = redis.call("HKEYS", keys.caps(p, lane.no))
    table.sort(caps)
    table.insert(caps, 1, "-")
    local ready, oldest = 0, 0
    for i = 1, #caps do
      local key = keys.queue(p, lane.no, caps[i])
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
