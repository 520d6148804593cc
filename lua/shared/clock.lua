-- shared/clock.lua -- the one door through which time enters.
--
-- TIME is frozen inside a function, so one function is one instant. The simulation swaps this file for
-- one that reads a test key, which moves every lease, deadline and window of the engine: the library sets
-- no key TTL anywhere.

local clock = {}

-- The server's own time, milliseconds.
function clock.server_ms()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A partition's time never runs back: hwm is the latest time it has used, offset makes up for a server
-- whose clock was set back (raised and let go slowly by tick).
function clock.now_ms(server_ms, hwm, offset)
  local now = server_ms + offset
  if now < hwm then return hwm end
  return now
end
