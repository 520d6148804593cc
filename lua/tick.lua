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

-- One partition. `force` ticks it whoever its ticker is.
local function tick(p, a, limit)
  local ticker = redis.call("HGET", p.key, "ticker")
  if ticker and ticker ~= a.ticker and p.ticker_until > p.now and not a.force then
    return { p.tag, 0, 0, 0, p.ticker_until, p.now, {} }
  end
  steady_clock(p)
  p.touched = true
  p.ticker_until = 0   -- what this call sets is seen by its own answer: it must not ring itself
  local done = due.run(p, limit)
  partition.flush(p)
  local reaped = reap.run(p, limit)
  if ticker ~= a.ticker then lanes.note(p, "ticker", a.ticker) end
  partition.flush(p)
  lanes.note(p, "ticker_until", p.now + LIMITS.TICKER_MS)
  local next_due = p.now + LIMITS.TICKER_MS
  local t, r, l = soonest(keys.timers(p)), soonest(keys.reap(p)), soonest(keys.leases(p))
  if l and p.grace_until >= p.now then l = math.max(l, p.grace_until + 1) end
  if l and l < next_due then next_due = math.max(l, p.now) end
  if t and t < next_due then next_due = math.max(t, p.now) end
  if r and r < next_due then next_due = math.max(r, p.now) end
  return { p.tag, 1, done, reaped, next_due, p.now, p.owed or {} }
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
    for i = 1, #ps do rows[i] = tick(ps[i], a, share) end
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
