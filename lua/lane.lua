-- lane.lua -- lanes seen by people: names, states, counts. What they are told is settings.lua.

local MOVED_N = 50   -- jobs one call moves, of however many lanes: about a millisecond

-- A lane's queues are being ordered anew: the next piece.
due.on("order", function(p, no)
  local lane, left = lanes.of(p, no), MOVED_N - (p.moved_n or 0)
  if lane.moving and (left <= 0 or not queue.move_over(p, lane, left)) then timers.set(p, "order", no, p.now) end
end)

-- What an ended job held of its lane's backlog is free again.
state.on_end(function(p, x)
  if not x.held_bytes then return end
  lanes.drop_bytes(p, x)
  record.write(p, x, "held_bytes", false)
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

local HALTS_N = 100     -- queues a lane's numbers name that may not start anything now
local LOOKED_N = 2000   -- halted queues one call looks at: some 5 ms

-- The queues of this lane that are halted, with their jobs, and how many jobs that are in all.
local function halted(p, lane, sets, ready)
  local whole, rows, held = admission.lane_set(lane), {}, 0
  if whole and admission.is_halted(p, whole) then
    local halt = admission.halt(p, whole)
    return { { "-", halt.kind, halt.uuid, halt.over_at, halt.text, ready } }, ready
  end
  local halts = redis.call("HKEYS", keys.halts(p))
  table.sort(halts)
  for i = 1, math.min(#halts, LOOKED_N) do
    local adm, n = halts[i], 0
    if string.find(adm, "^%x+$") and admission.is_halted(p, adm) then
      local halt = admission.halt(p, adm)
      for c = 1, #sets do n = n + redis.call("ZCARD", keys.queue(p, lane.no, sets[c] .. "." .. adm)) end
      held = held + n
      if n > 0 and #rows < HALTS_N then rows[#rows + 1] = { adm, halt.kind, halt.uuid, halt.over_at, halt.text, n } end
    end
  end
  return rows, held
end

-- Since when the first job of some queues waits; 0: they are empty.
local function oldest_of(p, queues)
  local oldest = 0
  for i = 1, #queues do
    local head = redis.call("ZRANGE", queues[i], 0, 0)[1]
    local created = head and tonumber(redis.call("HGET", keys.core(p, head), record.short("created_at")) or "0") or 0
    if created > 0 and (oldest == 0 or created < oldest) then oldest = created end
  end
  return oldest
end

-- Where the oldest ready jobs stand: at the head of the lane's queues, and of those of its admission sets that come first.
local function heads_of(p, lane, sets)
  local out = {}
  for i = 1, #sets do
    out[#out + 1] = keys.queue(p, lane.no, sets[i])
    if lane.moving then out[#out + 1] = keys.before(p, lane.no, sets[i]) end
    local open, shut = keys.ring(p, lane.no, sets[i]), keys.shut(p, lane.no, sets[i])
    local first = { redis.call("ZRANGE", open, 0, 0)[1] or false, redis.call("ZRANGE", shut, 0, 0)[1] or false }
    for j = 1, 2 do if first[j] then out[#out + 1] = keys.queue(p, lane.no, sets[i] .. "." .. first[j]) end end
  end
  return out
end

-- Counts of a lane in this partition by stored state, since when its oldest ready job waits, and what is halted of it.
define {
  name    = "ff_lane_stats",
  args    = { "lane_id:str" },
  returns = { "lane_stats" },
  errors  = { "lane_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local lane = lanes.named(p, a.lane_id, false)
    if not lane then return reply.reject("lane_not_found", a.lane_id) end
    local sets, ready = lane.revision > 0 and redis.call("HKEYS", keys.caps(p, lane.no)) or {}, lanes.ready(p, lane)
    table.sort(sets)
    sets[#sets + 1] = "-"
    local halts, held = halted(p, lane, sets, ready)
    local oldest = oldest_of(p, heads_of(p, lane, sets))
    local parked = redis.call("ZCOUNT", keys.park(p, lane.no, "-"), p.now, "+inf")
    local counts = { "ready", ready }
    counts[3], counts[4] = "active", lane.active
    local words = { "granted", "delayed", "blocked", "suspended", "completed", "failed", "cancelled", "expired", "skipped" }
    for i = 1, #words do
      counts[#counts + 1] = words[i]
      counts[#counts + 1] = redis.call("ZCARD", keys.index(p, lane.no, words[i]))
    end
    return { "lane_stats", lane.state, counts, oldest, parked, p.now, held, halts }
  end,
}
