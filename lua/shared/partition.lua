-- shared/partition.lua -- open a partition for one call, and write what the call collected.
--
-- One HMGET of the header gives everything a call needs to know about its partition. A header that is
-- missing means a wiped or foreign store: functions survive FLUSHALL, data does not, and an empty queue
-- must not be the answer.
--
-- `v` is the schema any record here may have, and " x" behind it while one of the rare words is set: grace_until,
-- holds, gate_until (submits are refused until then), records (the oldest schema a record may still have), marking
-- (policies in use are being looked for). So an ordinary call reads none of these.

local SCHEMA = record.SCHEMA
local PLAIN = SCHEMA .. ""   -- the store's libraries are not there yet while this one loads

function partition.open(key, absent, reads_only)
  local tag = keys.tag_of(key)
  if not tag or absent ~= keys.absent(key) then return nil end
  local got = redis.call("HMGET", key, "v", "hwm", "offset", "ticker_until")
  local p = { key = key, tag = tag, id_prefix = tag .. ":", id_prefix_n = #tag + 1, ready = got[1] and true or false,
    server_ms = clock.server_ms(), hwm = tonumber(got[2] or "0"), offset = got[3] ~= "0" and tonumber(got[3]) or 0,
    grace_until = 0, ticker_until = tonumber(got[4] or "0"), holds_n = 0, gate_until = 0,
    lanes = {}, lane_numbers = {}, texts = {}, replays_n = 0 }
  p.now = clock.now_ms(p.server_ms, p.hwm, p.offset)
  if got[1] and got[1] ~= PLAIN then
    p.schema = tonumber(string.match(got[1], "^%d+"))
    -- Written by a newer release in a way this one does not know.
    p.foreign = p.schema > SCHEMA
    p.rare = got[1] ~= tostring(p.schema)
    if p.rare then
      local more = redis.call("HMGET", key, "grace_until", "holds", "gate_until", "records", "marking")
      p.grace_until, p.holds_n, p.gate_until = tonumber(more[1] or "0"), tonumber(more[2] or "0"), tonumber(more[3] or "0")
      p.records = tonumber(more[4])
      p.marking = more[5]
    end
    if p.schema < SCHEMA then
      p.records = p.records or p.schema
      if not reads_only then partition.raise_schema(p) end
    end
    p.reads_only = reads_only
    p.whole = p.records ~= nil or p.marking ~= nil
  end
  if p.ready and p.now - p.hwm > LIMITS.OVERDUE_MS then
    -- Nobody has written here for a while. If a lease is overdue by as much, the server was away (down,
    -- paused, clock jump), and workers must get one renewal interval before their leases count as lost.
    local head = redis.call("ZRANGE", keys.leases(p), "-inf", p.now - LIMITS.OVERDUE_MS, "BYSCORE", "LIMIT", 0, 1, "WITHSCORES")
    -- One that has had its grace gets no other: where nobody ticks, slow pollers would renew it for ever.
    if head[2] and tonumber(head[2]) > p.grace_until then
      p.grace_until = p.now + LIMITS.RENEWAL_INTERVAL_MAX_MS
      p.grace_new = true
    end
  end
  return p
end

-- Flush in this order: what the ends of a flow's members lead to, indexes, then timers, then the feed, then bells. A worker that is rung asks
-- after this function has ended, so it finds the job.
function partition.flush(p)
  if p.settling or p.links then graph.settle(p) end
  p.known = nil
  waitpoints.flush(p)
  queue.flush(p)
  if p.new_lanes then
    for i = 1, #p.new_lanes do timers.reap(p, "idle", p.new_lanes[i], p.now + LIMITS.LANE_IDLE_MS) end
    p.new_lanes = nil
  end
  if p.flows then flows.flush(p) end
  if p.marks then policy.flush(p) end
  if p.mail then outbox.flush(p) end
  timers.flush(p)
  if p.event_writes or p.touched then lanes.note(p, "hwm", p.now) end
  events.flush(p)
  if p.grace_new then
    lanes.note(p, "grace_until", p.grace_until)
    lanes.note(p, "hwm", p.now)
    partition.mark_rare(p)
    p.grace_new = nil
  end
  if p.replays_n > 0 then
    redis.call("HINCRBY", p.key, "replays", p.replays_n)
    p.replays_n = 0
  end
  lanes.flush(p)
  local set = p.header_writes
  if set then
    p.header_writes = nil
    redis.call("HSET", p.key, unpack(set, 1, set.n))
  end
end

function partition.close(p)
  partition.flush(p)
  wake.flush(p)
end

-- Above the high-water mark (tick.lua) whatever admits new work is refused by this, before it writes. The advice is in
-- milliseconds, like that for a server that refuses by itself.
function partition.full(p)
  if p.gate_until > p.now then return reply.reject("store_full", LIMITS.FULL_RETRY_MS) end
end

-- One of the rare words has been set.
function partition.mark_rare(p)
  if not p.rare then
    p.rare = true
    lanes.note(p, "v", PLAIN .. " x")
  end
end

-- Forget the rare words that say nothing any more, so that the next calls need not read them.
function partition.sweep_rare(p)
  if not p.rare or p.grace_until >= p.now or p.gate_until > p.now or p.records or p.marking then return end
  -- Leases that had their grace and were not looked at since must not get another.
  local head = p.grace_until > 0 and redis.call("ZRANGE", keys.leases(p), 0, 0, "WITHSCORES")
  if head and head[2] and tonumber(head[2]) <= p.grace_until then return end
  if lanes.noted(p, "holds") ~= "" and tonumber(lanes.noted(p, "holds")) > 0 then return end
  p.rare = nil
  redis.call("HDEL", p.key, "grace_until", "holds", "gate_until")
  lanes.note(p, "v", PLAIN)
end

-- From the first call of a newer release on: an older one must refuse this partition before it meets a record that it
-- cannot read. Records follow one by one, when they are touched and by the ticker.
function partition.raise_schema(p)
  redis.call("HSET", p.key, "v", PLAIN .. " x", "records", p.records)
  -- One that an earlier upgrade began starts anew: where it has been, records are of that upgrade's schema.
  redis.call("HDEL", p.key, "walk_records")
  p.schema, p.rare = SCHEMA, true
  -- At once: a call that turns out to be malformed writes nothing of what it collected, and nobody would come here again.
  redis.call("ZADD", keys.reap(p), p.now, "walk:records")
end

function partition.create(p, counts)
  redis.call("HSET", p.key, "v", SCHEMA, "hwm", p.server_ms, "offset", 0, "created_at", p.server_ms, "counts", counts)
end
