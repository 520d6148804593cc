-- shared/due.lua -- do what is due. Capabilities say what a kind of timer means; this runs them.
--
-- A timer is a hint, the record is the truth: every handler looks again before it acts, so running a
-- timer twice, late or by two callers at once does the same as running it once.

local due = { handlers = {} }

-- Called while the library loads, with the kind and what to do: handler(p, id, due_ms).
function due.on(kind, handler) due.handlers[kind] = handler end

-- A lease has run out, or its entry is stale.
function due.expire(p, id)
  local x = record.load(p, id)
  if not x or x.state ~= "active" then
    redis.call("ZREM", keys.leases(p), id)
  elseif tonumber(x.at) <= p.now then
    attempt.expire_lease(p, x)
  else
    timers.extend(p, x)
  end
end

-- Up to `limit` leases that have run out, then up to `limit` due timers, oldest first. Answers how many
-- there were. During a grace no lease runs out.
function due.run(p, limit)
  local done = 0
  if p.grace_until < p.now then
    local lost = redis.call("ZRANGE", keys.leases(p), "-inf", p.now, "BYSCORE", "LIMIT", 0, limit)
    for i = 1, #lost do due.expire(p, lost[i]) end
    done = #lost
  end
  local ready = timers.due(keys.timers(p), p.now, limit)
  for i = 1, #ready, 2 do
    local kind, id = string.match(ready[i], "^([%w_]+):(.*)$")
    local handler = due.handlers[kind]
    -- Cleared first: the handler may set the same timer again, and the last word on a member wins.
    if handler then
      timers.clear(p, kind, id)
      handler(p, id, tonumber(ready[i + 1]))
    else
      -- A kind of a newer release: look again later, when it may be us who do not know.
      timers.set(p, kind, id, p.now + 60000)
    end
  end
  return done + #ready / 2
end

-- The same for the reap set, which holds what only frees memory: it never delays the timers. A handler
-- is told how many records it may go through and answers how many it did.
local reap = { handlers = {} }

function reap.on(kind, handler) reap.handlers[kind] = handler end

function reap.run(p, limit)
  local ready, done = timers.due(keys.reap(p), p.now, math.min(limit, LIMITS.TICK_N)), 0
  for i = 1, #ready, 2 do
    if done < limit then
      local kind, id = string.match(ready[i], "^([%w_]+):(.*)$")
      local handler = reap.handlers[kind]
      if handler then
        timers.unreap(p, kind, id)
        done = done + math.max(1, handler(p, id, limit - done) or 1)
      else
        timers.reap(p, kind, id, p.now + 60000)
      end
    end
  end
  return done
end
