-- shared/outbox.lua -- effects of a transition on another partition.
--
-- A function changes one partition. What it owes to another (a settled reservation, a released key) is a row here,
-- written by the transition itself, so that neither can happen without the other. Whoever made the call delivers at
-- once and acknowledges; what is left undelivered after a second is answered to the ticker, again and again until it
-- is acknowledged. The receiver applies each row once (shared/inbox.lua).
--
-- A row is named "<target>/<number before>/<number>". Numbers rise for each target and are instants where that is
-- higher: a copy of the store that takes over without the last writes gives none of them again. The number before
-- says what comes between: nothing.

local outbox = { RETRY_MS = 1000 }
do   -- helpers of this file

-- The header word of the last number given to a target.
local function counter(target) return "o" .. target end

-- Owe `kind` (a word) with `body` to a partition. Written when the call closes.
function outbox.add(p, target, kind, body)
  local list = p.mail
  if not list then
    list = { n = 0 }
    p.mail = list
  end
  local n = list.n
  list[n + 1], list[n + 2] = target, kind .. " " .. body
  list.n = n + 2
end

function outbox.row(target, before, number) return target .. "/" .. before .. "/" .. number end

-- Target, the number before and the row's own; nil for what is no row's name.
function outbox.parts(row)
  local target, before, number = string.match(row, "^({%l+:%d+})/(%d+)/(%d+)$")
  if not target or #number > 16 or #before > 16 then return nil end
  return target, before, number
end

function outbox.flush(p)
  local list = p.mail
  if not list then return end
  p.mail = nil
  local words, last = {}, {}
  for i = 1, list.n, 2 do
    local target = list[i]
    local before = last[target] or lanes.noted(p, counter(target))
    if before == "" then before = "0" end
    local number = string.format("%.0f", math.max(tonumber(before) + 1, p.now))
    last[target] = number
    lanes.note(p, counter(target), number)
    local row = outbox.row(target, before, number)
    words[i], words[i + 1] = row, target .. " " .. list[i + 1]
    timers.set(p, "outbox", row, p.now + outbox.RETRY_MS)
  end
  for from = 1, list.n, 400 do
    redis.call("HSET", keys.outbox(p), unpack(words, from, math.min(from + 399, list.n)))
  end
end

-- A row as it is answered: name, target, kind, body.
function outbox.unpack(row, text)
  local target, kind, body = string.match(text, "^(%S+) (%S+) (.*)$")
  return { row, target, kind, body }
end

end
