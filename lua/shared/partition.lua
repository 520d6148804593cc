-- shared/partition.lua -- open a partition for one call, and write what the call collected.
--
-- One HMGET of the header gives everything a call needs to know about its partition. A header that is
-- missing means a wiped or foreign store: functions survive FLUSHALL, data does not, and an empty queue
-- must not be the answer.

local SCHEMA = 1

function partition.open(key, absent)
  local tag = keys.tag_of(key)
  if not tag or absent ~= keys.absent(key) then return nil end
  local got = redis.call("HMGET", key, "v", "hwm", "offset", "grace_until", "ticker_until", "holds")
  local p = { key = key, tag = tag, id_prefix = tag .. ":", id_prefix_n = #tag + 1, ready = got[1] and true or false,
    server_ms = clock.server_ms(), hwm = tonumber(got[2] or "0"), offset = tonumber(got[3] or "0"),
    grace_until = tonumber(got[4] or "0"), ticker_until = tonumber(got[5] or "0"), holds_n = tonumber(got[6] or "0"),
    lanes = {}, lane_numbers = {}, texts = {}, replays_n = 0 }
  p.now = clock.now_ms(p.server_ms, p.hwm, p.offset)
  -- Written by a newer release in a way this one does not know.
  p.foreign = p.ready and tonumber(got[1]) > SCHEMA
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

-- Flush in this order: indexes, then timers, then the feed, then bells. A worker that is rung asks
-- after this function has ended, so it finds the job.
function partition.flush(p)
  queue.flush(p)
  timers.flush(p)
  if p.event_writes or p.touched then lanes.note(p, "hwm", p.now) end
  events.flush(p)
  if p.grace_new then
    lanes.note(p, "grace_until", p.grace_until)
    lanes.note(p, "hwm", p.now)
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
    local flat = {}
    for i = 1, #set.order do
      flat[#flat + 1] = set.order[i]
      flat[#flat + 1] = set.at[set.order[i]]
    end
    redis.call("HSET", p.key, unpack(flat))
  end
end

function partition.close(p)
  partition.flush(p)
  wake.flush(p)
end

function partition.create(p, counts)
  redis.call("HSET", p.key, "v", SCHEMA, "hwm", p.server_ms, "offset", 0, "created_at", p.server_ms, "counts", counts)
end
