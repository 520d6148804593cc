-- tick.lua -- do what is due in each partition, and say when to come back.
--
-- Anything may tick, at any time, as often as it likes: due work is done once, because every handler
-- looks at the record. To save work, one ticker at a time looks after a partition: it promises to look
-- again by ticker_until, at most a second ahead; another takes over when the promise lapses.

-- Make up for a server whose clock was set back: raise the offset by the gap, and let it go by at most a
-- tenth of the time that passes, so that time neither stands still nor runs back.
local function steady_clock(p)
  local gap = p.hwm - (p.server_ms + p.offset)
  if gap > 1000 then
    lanes.note(p, "offset", p.offset + gap)
    lanes.note(p, "offset_at", p.server_ms)
  elseif p.offset > 0 then
    local since = tonumber(redis.call("HGET", p.key, "offset_at") or "0")
    local passed = p.server_ms - since
    if passed >= 10 then
      lanes.note(p, "offset", math.max(0, p.offset - math.floor(passed / 10)))
      lanes.note(p, "offset_at", p.server_ms)
    elseif passed < 0 then
      lanes.note(p, "offset_at", p.server_ms)
    end
  end
end

local function soonest(key)
  local head = redis.call("ZRANGE", key, 0, 0, "WITHSCORES")
  return tonumber(head[2])
end

-- What the server says of its memory, asked at most once a second: used, and its maxmemory (0: none). A cache, never
-- state. A store that does not say (memory://) has no limit.
local asked_at, used, most = -1, 0, 0
local function memory(p)
  if asked_at < 0 or math.abs(p.server_ms - asked_at) >= LIMITS.TICKER_MS then
    local info = redis.pcall("INFO", "memory")
    if type(info) ~= "string" then info = "" end
    used = tonumber(string.match(info, "used_memory:(%d+)")) or 0
    most = tonumber(string.match(info, "maxmemory:(%d+)")) or 0
    asked_at = p.server_ms
  end
  return used, most
end

-- Above the high-water mark nothing that admits new work is taken. The gate closes for GATE_MS at a time: when nobody
-- ticks any more, it opens by itself.
local function watch_memory(p, mark)
  local pct, bytes = string.match(mark or "", "^(%d+) (%d+)$")
  pct, bytes = tonumber(pct or LIMITS.GATE_PCT), tonumber(bytes or "0")
  local now_used, limit = memory(p)
  if limit > 0 and pct > 0 and now_used >= limit / 100 * pct or bytes > 0 and now_used >= bytes then
    p.gate_until = p.now + LIMITS.GATE_MS
    lanes.note(p, "gate_until", p.gate_until)
    partition.mark_rare(p)
  elseif p.gate_until > p.now then
    p.gate_until = 0
    lanes.note(p, "gate_until", 0)
  end
end

-- One partition. `force` ticks it whoever its ticker is.
local function tick(p, a, limit)
  local head = redis.call("HMGET", p.key, "ticker", "settings", "gate")
  local ticker, revision = head[1], tonumber(head[2] or "0")
  if ticker and ticker ~= a.ticker and p.ticker_until > p.now and not a.force then
    return { p.tag, 0, 0, 0, p.ticker_until, p.now, {}, revision, {} }
  end
  steady_clock(p)
  p.touched = true
  p.ticker_until = 0   -- what this call sets is seen by its own answer: it must not ring itself
  local done = due.run(p, limit)
  partition.flush(p)
  local reaped = reap.run(p, limit)
  if ticker ~= a.ticker then lanes.note(p, "ticker", a.ticker) end
  if string.sub(p.tag, 1, 4) == "{fp:" then watch_memory(p, head[3]) end
  partition.sweep_rare(p)
  partition.flush(p)
  lanes.note(p, "ticker_until", p.now + LIMITS.TICKER_MS)
  local next_due = p.now + LIMITS.TICKER_MS
  local rows, s = schedules.due(p)
  if s and s < next_due then next_due = math.max(s, p.now) end
  local t, r, l = soonest(keys.timers(p)), soonest(keys.reap(p)), soonest(keys.leases(p))
  if l and p.grace_until >= p.now then l = math.max(l, p.grace_until + 1) end
  if l and l < next_due then next_due = math.max(l, p.now) end
  if t and t < next_due then next_due = math.max(t, p.now) end
  if r and r < next_due then next_due = math.max(r, p.now) end
  return { p.tag, 1, done, reaped, next_due, p.now, p.owed or {}, revision, rows }
end

define {
  name    = "ff_tick",
  args    = { "ticker:str", "limit:int", "force:bool" },
  returns = { "ticked" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  scope   = "many",
  run = function(ps, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if not names.is_instance(a.ticker) then return reply.reject("invalid_input", "ticker") end
    local rows = {}
    -- The limit is the call's: a server that is held for many partitions is held as long as for one.
    local share = math.max(1, math.floor(a.limit / #ps))
    for i = 1, #ps do
      ps[i].edges_left = math.max(1, math.floor(LIMITS.EDGES_INLINE_N / #ps))
      rows[i] = tick(ps[i], a, share)
    end
    return { "ticked", rows }
  end,
}

-- A header as it stands, for doctor and status.
define {
  name    = "ff_read_header",
  args    = {},
  returns = { "header" },
  errors  = {},
  flags   = { "no-writes" },
  run = function(p)
    local flat, names, values = redis.call("HGETALL", p.key), {}, {}
    for i = 1, #flat, 2 do
      names[#names + 1] = flat[i]
      values[flat[i]] = flat[i + 1]
    end
    table.sort(names)
    local out = {}
    for i = 1, #names do out[#out + 1] = names[i]; out[#out + 1] = values[names[i]] end
    return { "header", p.now, out, redis.call("ZCARD", keys.timers(p)), redis.call("ZCARD", keys.reap(p)), redis.call("XLEN", keys.events(p)) }
  end,
}
