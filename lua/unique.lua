-- unique.lua -- one execution at a time holds a key.
--
-- A key is taken before the execution is created, by the id it is going to have. Whoever takes it may die before the
-- create: so a minute later the partition of the execution is asked, again until it answers, and after that never. From
-- then on the execution itself lets go, by a row of its outbox, when its start (queued) or its end (active) is written.

local SCOPES = { queued = true, active = true, window = true, forever = true }

-- Who holds a key now; nil when it is free.
local function holder_of(p, id)
  local r = redis.call("HMGET", keys.unique(p, id), "holder", "scope", "taken", "until", "seen")
  if not r[1] then return nil end
  local u = { holder = r[1], scope = r[2], taken = r[3], until_ms = tonumber(r[4]), seen = r[5] == "1" }
  if u.until_ms > 0 and u.until_ms <= p.now then return nil end
  return u
end

local function let_go(p, id)
  redis.call("UNLINK", keys.unique(p, id))
  timers.clear(p, "unique", id)
  timers.unreap(p, "unique", id)
end

-- It is the caller's if it is free, held by this execution already, or held by the one it comes instead of. No allow-oom:
-- taking a key admits new work.
define {
  name    = "ff_take_unique",
  args    = { "unique_id:id", "execution_id:str", "scope:str", "window_ms:int", "instead_of:str?" },
  returns = { "taken", "held" },   -- whether anew, until; who holds it, how, until
  errors  = { "invalid_input" },
  flags   = {},
  run = function(p, a)
    if not quotas.is_execution(a.execution_id) then return reply.reject("invalid_input", "execution_id") end
    if not SCOPES[a.scope] then return reply.reject("invalid_input", "scope") end
    local timed = a.scope == "window"
    if a.window_ms > LIMITS.SPAN_MAX_MS or timed and a.window_ms < 1 then return reply.reject("invalid_input", "window_ms") end
    local id = a.unique_id
    local u = holder_of(p, id)
    if u and u.holder == a.execution_id then
      fence.replayed(p)
      return { "taken", 0, u.until_ms }
    end
    if u and u.holder ~= a.instead_of then return { "held", u.holder, u.scope, u.until_ms } end
    local until_ms = timed and p.now + a.window_ms or 0
    redis.call("HSET", keys.unique(p, id), "holder", a.execution_id, "scope", a.scope, "taken", p.now, "until", until_ms, "seen", 0)
    timers.set(p, "unique", id, p.now + LIMITS.RESERVATION_MS)
    if timed then timers.reap(p, "unique", id, until_ms) else timers.unreap(p, "unique", id) end
    return { "taken", 1, until_ms }
  end,
}

define {
  name    = "ff_drop_unique",
  args    = { "unique_id:id", "execution_id:str" },
  returns = { "dropped", "not_held" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local u = holder_of(p, a.unique_id)
    if not u or u.holder ~= a.execution_id then return { "not_held" } end
    let_go(p, a.unique_id)
    return { "dropped" }
  end,
}

define {
  name    = "ff_read_unique",
  args    = { "unique_id:id" },
  returns = { "held", "free" },
  errors  = {},
  flags   = { "no-writes" },
  run = function(p, a)
    local u = holder_of(p, a.unique_id)
    if not u then return { "free" } end
    return { "held", u.holder, u.scope, u.until_ms }
  end,
}

-- Its holder has started, or ended. "<unique> <execution>"
inbox.on("free", function(p, body)
  local id, execution_id = string.match(body, "^(%x+%-%x+%-%x+%-%x+%-%x+) (%S+)$")
  local u = id and holder_of(p, id)
  if u and u.holder == execution_id then let_go(p, id) end
end)

-- Was it created, and is there a reason to hold on? Asked with the instant it was taken at, which the answer repeats.
due.on("unique", function(p, id)
  local u = holder_of(p, id)
  if not u then return let_go(p, id) end
  if u.seen then return end
  timers.set(p, "unique", id, p.now + LIMITS.RESERVATION_MS)
  inbox.wake(p, string.match(u.holder, "^{%a+:%d+}"), "verify", p.tag .. " u " .. id .. " " .. u.scope .. " " .. u.holder .. " " .. u.taken)
end)

inbox.on("verified u", function(p, body)
  local id, execution_id, taken, held = string.match(body, "^u (%x+%-%x+%-%x+%-%x+%-%x+) %S+ (%S+) (%d+) ([01])$")
  local u = id and holder_of(p, id)
  if not u or u.holder ~= execution_id or u.taken ~= taken then return end
  if held == "0" then return let_go(p, id) end
  redis.call("HSET", keys.unique(p, id), "seen", 1)
  timers.clear(p, "unique", id)
end)

-- A window is over.
reap.on("unique", function(p, id)
  local u = holder_of(p, id)
  if not u then let_go(p, id)
  elseif u.until_ms > 0 then timers.reap(p, "unique", id, u.until_ms) end
  return 1
end)
