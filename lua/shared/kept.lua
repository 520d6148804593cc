-- shared/kept.lua -- signals that waitpoints keep until a suspension takes them.
--
-- A signal: { seq, waitpoint_id, id, name, category, source_type, source_identity, correlation_id, accepted_at, key, encoding,
-- payload, packed, operator }. `packed` is its eleven texts in this order; absent texts are empty. `operator`: it came
-- without a token, by an operator's hand; what a sender writes into source_type proves nothing. Kept are those that no
-- suspension has taken; a suspension keeps what it takes by itself.

do   -- helpers of this file; a chunk holds 200 locals

local TEXTS_N = 11   -- of a packed signal
local text = waitpoints.text

function waitpoints.packed(p, signal)
  return text(signal.waitpoint_id) .. text(signal.id) .. text(signal.name) .. text(signal.category) .. text(signal.source_type)
    .. text(signal.source_identity) .. text(signal.correlation_id) .. text(record.text(p, signal.accepted_at)) .. text(signal.key)
    .. text(signal.encoding) .. text(signal.payload)
end

local function signal_of(packed, seq)
  local t = waitpoints.unpack(packed, TEXTS_N)
  if not t then return nil end
  return { seq = seq, packed = packed, waitpoint_id = t[1], id = t[2], name = t[3], category = t[4], source_type = t[5], source_identity = t[6],
    correlation_id = t[7], accepted_at = tonumber(t[8]), key = t[9], encoding = t[10], payload = t[11] }
end

-- How many an execution has taken and keeps; read once per call.
function waitpoints.tally(p, x, counts)
  p.signals = p.signals or {}
  local t = p.signals[x.id]
  if not t then
    counts = counts or redis.call("HGET", keys.signals(p, x.id), "n") or ""
    local total, kept, bytes = string.match(counts, "^(%d+) (%d+) (%d+)$")
    t = { total = tonumber(total or "0"), kept = tonumber(kept or "0"), bytes = tonumber(bytes or "0") }
    p.signals[x.id] = t
  end
  return t
end

function waitpoints.tally_text(t) return string.format("%d %d %d", t.total, t.kept, t.bytes) end

-- Read what several waitpoints keep in one go, for `buffered`: signals of one lie among those of the others, and looking
-- for each waitpoint's by itself would read all of them as often. `light`: without their texts, to be dropped.
function waitpoints.gather(p, x, ids, light)
  if #ids < 2 then return end
  local t, lists, fields, wanted = waitpoints.tally(p, x), p.gathered and p.gathered[x.id] or {}, {}, {}
  for i = 1, #ids do if not lists[ids[i]] then fields[#fields + 1], wanted[#wanted + 1] = "c" .. ids[i], ids[i] end end
  if #wanted < 2 or t.kept == 0 then return end
  local key, at, left = keys.signals(p, x.id), t.total + 1, 0
  local rows = redis.call("HMGET", key, unpack(fields))
  for i = 1, #wanted do
    local first, n = string.match(rows[i] or "", "^(%d+) (%d+)$")
    lists[wanted[i]] = {}
    if first then at, left = math.min(at, tonumber(first)), left + tonumber(n) end
  end
  p.gathered = p.gathered or {}
  p.gathered[x.id] = lists
  while left > 0 and at <= t.total do
    fields = {}
    for n = at, math.min(t.total, at + 499) do fields[#fields + 1] = "s" .. n end
    local got = redis.call("HMGET", key, unpack(fields))
    for i = 1, #fields do
      local id = got[i] and string.sub(got[i], 4, 39)
      local list = id and lists[id]
      local signal = list and (light and { seq = at + i - 1, waitpoint_id = id, bytes = #got[i] } or signal_of(got[i], at + i - 1))
      if signal then
        list[#list + 1] = signal
        left = left - 1
      end
    end
    at = at + 500
  end
end

-- What a waitpoint keeps, in order of arrival. It is known how many that are and where they begin, so the search ends.
function waitpoints.buffered(p, x, id)
  local out, t = {}, waitpoints.tally(p, x)
  if t.kept == 0 then return out end
  local gathered = p.gathered and p.gathered[x.id] and p.gathered[x.id][id]
  if gathered then
    for i = 1, #gathered do if not gathered[i].gone then out[#out + 1] = gathered[i] end end
    return out
  end
  local key = keys.signals(p, x.id)
  local first, kept = string.match(redis.call("HGET", key, "c" .. id) or "", "^(%d+) (%d+)$")
  local at, left = tonumber(first or "0"), tonumber(kept or "0")
  while left > 0 and at <= t.total do
    local fields = {}
    for n = at, math.min(t.total, at + 499) do fields[#fields + 1] = "s" .. n end
    local got = redis.call("HMGET", key, unpack(fields))
    for i = 1, #fields do
      local signal = got[i] and string.sub(got[i], 4, 39) == id and signal_of(got[i], at + i - 1)
      if signal then
        out[#out + 1] = signal
        left = left - 1
      end
    end
    at = at + 500
  end
  return out
end

-- Take signals out of what is kept: they have done their work. What their keys were answered stays.
function waitpoints.consume(p, x, signals)
  if #signals == 0 then return end
  local key, t, gone, order, took = keys.signals(p, x.id), waitpoints.tally(p, x), {}, {}, {}
  for i = 1, #signals do
    local signal = signals[i]
    gone[i], signal.gone = "s" .. signal.seq, true
    t.kept, t.bytes = t.kept - 1, t.bytes - (signal.bytes or #signal.packed)
    if not took[signal.waitpoint_id] then order[#order + 1] = signal.waitpoint_id end
    took[signal.waitpoint_id] = (took[signal.waitpoint_id] or 0) + 1
  end
  local set = { "n", waitpoints.tally_text(t) }
  for i = 1, #order do
    local first, n = string.match(redis.call("HGET", key, "c" .. order[i]) or "0 0", "^(%d+) (%d+)$")
    local left = tonumber(n) - took[order[i]]
    if left > 0 then set[#set + 1], set[#set + 2] = "c" .. order[i], first .. " " .. left
    else gone[#gone + 1] = "c" .. order[i] end
  end
  for from = 1, #gone, 500 do redis.call("HDEL", key, unpack(gone, from, math.min(#gone, from + 499))) end
  redis.call("HSET", key, unpack(set))   -- two texts for each waitpoint, of which a call names 64
end

-- Keep a signal again that a suspension had taken, under the number it had; not where nothing can wait for it any more.
function waitpoints.restore(p, x, packed, number)
  local signal = signal_of(packed, tonumber(number))
  local row = waitpoints.load(p, x, signal.waitpoint_id)
  if not row or row.state == "closed" then return end
  local key, t = keys.signals(p, x.id), waitpoints.tally(p, x)
  local first, n = string.match(redis.call("HGET", key, "c" .. signal.waitpoint_id) or "", "^(%d+) (%d+)$")
  if p.gathered then p.gathered[x.id] = nil end
  t.kept, t.bytes = t.kept + 1, t.bytes + #packed
  redis.call("HSET", key, "s" .. number, packed, "n", waitpoints.tally_text(t),
    "c" .. signal.waitpoint_id, math.min(tonumber(first or number), signal.seq) .. " " .. (tonumber(n or "0") + 1))
end

-- Drop what a waitpoint keeps.
function waitpoints.discard(p, x, id)
  if waitpoints.tally(p, x).kept > 0 then waitpoints.consume(p, x, waitpoints.buffered(p, x, id)) end
end

end
