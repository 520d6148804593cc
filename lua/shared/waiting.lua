-- shared/waiting.lua -- which queues a budget or a quota has refused, and how many of their jobs may try again when
-- something of it becomes free.
--
-- keys.waiting holds "<partition> <admission set>" -> "<until> <last woken> <what it needs>". An entry stands for a day
-- from the last refusal, longer than any halt it led to; once it has been woken it has twice HALT_MS to be refused again,
-- or it waits no more. Until then every release wakes it, in turn. A wake is the delivered kind "unhalt", "<admission set> <uuid> <gen> <allow>", answered to the caller and not
-- kept: a lost one costs what is left of the halt. `allow` is how often what the queue needs fits now; it replaces what
-- an earlier wake allowed.
--
-- A refusal names the next gen, or 0 where nobody will be told. A wake with that gen or a later one that has overtaken it
-- says that it is out of date.

local waiting = { ALLOW_N = 1000 }
do   -- helpers of this file

local WAKES_N = 100   -- of one call; the rest follows by timer
local MOST_N = 2000   -- entries: a release looks at all of them, some 10 ms

-- Note who was refused. Answers whether it will be told: of very many queues some are not, and ask again by themselves.
function waiting.note(p, id, target, adm, what)
  if target == "" or adm == "" then return true end
  local key, field = keys.waiting(p, id), target .. " " .. adm
  local known = redis.call("HGET", key, field)
  if not known and redis.call("HLEN", key) >= MOST_N then return false end
  local last = string.match(known or "", "^%d+ (%d+) ") or "0"
  redis.call("HSET", key, field, string.format("%.0f", p.now + LIMITS.WAITING_MS) .. " " .. last .. " " .. what)
  timers.reap_first(p, "waiting", id, p.now + 4 * LIMITS.HALT_MS)
  return true
end

-- Of "<partition> <admission set>" and its text: until, last woken, what it needs.
function waiting.read(text)
  local until_ms, last, what = string.match(text, "^(%d+) (%d+) (.*)$")
  if until_ms then return tonumber(until_ms), tonumber(last), what end
end

-- Those that are of use still, who has not been woken for longest first; the others are dropped.
local function entries(p, key)
  local flat, list, gone = redis.call("HGETALL", key), {}, {}
  for i = 1, #flat, 2 do
    local until_ms, last, what = waiting.read(flat[i + 1])
    if until_ms and until_ms >= p.now then list[#list + 1] = { flat[i], last, what, until_ms }
    else gone[#gone + 1] = flat[i] end
  end
  for from = 1, #gone, 1000 do redis.call("HDEL", key, unpack(gone, from, math.min(from + 999, #gone))) end
  table.sort(list, function(one, other)
    if one[2] ~= other[2] then return one[2] < other[2] end
    return one[1] < other[1]
  end)
  return list
end

-- Something has become free. `fits(what)` says how often what an entry needs fits now; that is shared out among those
-- who wait, so that one place free does not start a hundred queues: `given` is the share that is promised already.
-- Answers whether some were left for later.
function waiting.wake(p, id, gen, fits)
  local key = keys.waiting(p, id)
  local list = entries(p, key)
  local given, woken, writes = 0, 0, {}
  for i = 1, #list do
    local entry = list[i]
    local room = math.min(fits(entry[3]), waiting.ALLOW_N)
    if room > 0 and given < 0.999999 then
      if woken == WAKES_N then
        redis.call("HSET", key, unpack(writes))
        return true
      end
      local allow = math.ceil(room / #list)
      local target, adm = string.match(entry[1], "^(%S+) (%S+)$")
      inbox.wake(p, target, "unhalt", adm .. " " .. id .. " " .. string.format("%.0f", gen) .. " " .. string.format("%.0f", allow))
      given, woken = given + allow / room, woken + 1
      writes[#writes + 1] = entry[1]
      writes[#writes + 1] = string.format("%.0f %.0f ", p.now + 2 * LIMITS.HALT_MS, p.now) .. entry[3]
    end
  end
  if #writes > 0 then redis.call("HSET", key, unpack(writes)) end
  return false
end

-- What they wait for is gone. They ask again, and hear it: what comes in its place knows nothing of them. Answers whether
-- some were left for later.
function waiting.dismiss(p, id, gen)
  local key = keys.waiting(p, id)
  local list = entries(p, key)
  for i = 1, math.min(#list, WAKES_N) do
    local target, adm = string.match(list[i][1], "^(%S+) (%S+)$")
    inbox.wake(p, target, "unhalt", adm .. " " .. id .. " " .. string.format("%.0f", gen) .. " 1")
    redis.call("HDEL", key, list[i][1])
  end
  return #list > WAKES_N
end

function waiting.any(p, id) return redis.call("EXISTS", keys.waiting(p, id)) == 1 end

-- Forget what is of no use any more. Answers how many entries were looked at.
function waiting.sweep(p, id)
  local key = keys.waiting(p, id)
  local n = redis.call("HLEN", key)
  if #entries(p, key) > 0 then timers.reap(p, "waiting", id, p.now + 4 * LIMITS.HALT_MS) end
  return n
end

end
