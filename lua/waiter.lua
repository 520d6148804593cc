-- waiter.lua -- clients that wait for an execution to end, without polling.

-- Read the state and, where it is not terminal, register the client to be told: the registration lasts
-- WAITER_MS and is renewed by the client's slow fallback read. One read and registration in one
-- function, so an end between the two cannot be missed.
define {
  name    = "ff_await",
  args    = { "client:str", "items:rows(execution_id:id)" },
  returns = { "awaiting" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not names.is_instance(a.client) then return reply.reject("invalid_input", "client") end
    local states = {}
    for i = 1, #a.items do
      local id = a.items[i].execution_id
      local got = id and redis.call("HMGET", keys.core(p, id), "s", "wt")
      if not id or not got[1] then
        states[i] = "unknown"
      else
        states[i] = got[1]
        if not state.is_terminal(got[1]) then
          local until_ms = p.now + LIMITS.WAITER_MS
          local name, kept_until = string.match(got[2] or "", "^(%S+) (%d+)$")
          if not name or name == a.client or tonumber(kept_until) < p.now then
            -- The fallback asks every moment about all there is: a registration is written anew when half of it is over.
            local fresh = name == a.client and tonumber(kept_until) > p.now + LIMITS.WAITER_MS / 2
            if not fresh then redis.call("HSET", keys.core(p, id), "x", "1", "wt", a.client .. " " .. string.format("%.0f", until_ms)) end
          else
            redis.call("ZADD", keys.waiters(p, id), until_ms, a.client)
            timers.reap(p, "waiters", id, until_ms + 1000)
          end
        end
      end
    end
    return { "awaiting", states }
  end,
}
