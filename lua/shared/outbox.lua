-- shared/outbox.lua -- effects of a transition on another partition.
--
-- A function changes one partition. What it owes to another (a settled reservation, a released key) is a
-- row here, written by the transition itself, so that neither can happen without the other. Whoever made
-- the call delivers at once and acknowledges; what is left undelivered after a second is answered to the
-- ticker, again and again until it is acknowledged. Receivers keep the row's key and apply it once.

local outbox = {}

local RETRY_MS = 1000

-- Owe `kind` with `body` to a partition. The key (execution, epoch, sequence in this call) is the same
-- however often the transition is asked for, because a transition happens once per epoch.
function outbox.add(p, x, target, kind, body)
  p.owed_n = (p.owed_n or 0) + 1
  local row = x.id .. "." .. (x.lease_epoch or "0") .. "." .. p.owed_n
  redis.call("HSET", keys.outbox(p), row, target .. " " .. kind .. " " .. body)
  timers.set(p, "outbox", row, p.now + RETRY_MS)
  return row
end

-- An undelivered row: hand it to the ticker, and look again.
due.on("outbox", function(p, row)
  local kept = redis.call("HGET", keys.outbox(p), row)
  if kept then
    local target, kind, body = string.match(kept, "^(%S+) (%S+) (.*)$")
    p.owed = p.owed or {}
    table.insert(p.owed, { row, target, kind, body })
    -- A claim runs timers too but answers no rows: it leaves them due, for the ticker.
    timers.set(p, "outbox", row, p.touched and p.now + RETRY_MS or p.now)
  end
end)
