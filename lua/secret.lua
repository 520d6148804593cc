-- secret.lua -- which kids sign and verify tokens in this partition, and until when. Never a secret: fingerprints of them.
--
-- One kid signs. A rotation makes another sign and gives the old one a grace; when that is over its tokens open nothing,
-- and the next rotation forgets it. How many open waitpoints each kid signed is counted by whoever opens and closes them.

local KID = "use 1 to 32 of A-Z a-z 0-9 _ -"
local function is_kid(text) return #text <= LIMITS.KID_BYTES and string.find(text, "^[%w_%-]+$") ~= nil end
local function is_fingerprint(text) return #text == 32 and string.find(text, "^[%da-f]+$") ~= nil end

-- Kids with what is known of them, by name: { { kid, fingerprint, until }, ... }; how many waitpoints each has open.
local function kids_of(p)
  local flat, list, open, current = redis.call("HGETALL", keys.kids(p)), {}, {}, nil
  for i = 1, #flat, 2 do
    local kind, kid = string.sub(flat[i], 1, 1), string.sub(flat[i], 2)
    if flat[i] == "current" then current = flat[i + 1]
    elseif kind == "k" then
      local fingerprint, until_ms = string.match(flat[i + 1], "^(%x+) (%d+)$")
      list[#list + 1] = { kid, fingerprint, tonumber(until_ms) }
    elseif kind == "n" then open[kid] = tonumber(flat[i + 1]) end
  end
  table.sort(list, function(l, r) return l[1] < r[1] end)
  return list, open, current
end

-- Open waitpoints that another kid than this one signed.
local function others(open, kid)
  local n = 0
  for name, count in pairs(open) do if name ~= kid then n = n + count end end -- order-free
  return n
end

-- The first kid of a partition; harmless at every start.
define {
  name    = "ff_seed_waitpoint_hmac_secret",
  args    = { "kid:str", "fingerprint:str" },
  returns = { "seeded", "already_seeded" },
  errors  = { "invalid_kid", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not is_kid(a.kid) then return reply.reject("invalid_kid", KID) end
    if not is_fingerprint(a.fingerprint) then return reply.reject("invalid_input", "fingerprint") end
    local current, _, fingerprint = waitpoints.kid(p, a.kid)
    if current then
      fence.replayed(p)
      return { "already_seeded", current, current == a.kid and fingerprint == a.fingerprint and 1 or 0 }
    end
    redis.call("HSET", keys.kids(p), "current", a.kid, "k" .. a.kid, a.fingerprint .. " 0")
    return { "seeded", a.kid }
  end,
}

-- Another kid signs from now on; the last one verifies until its grace is over. Sent again it changes nothing.
define {
  name    = "ff_rotate_waitpoint_hmac_secret",
  args    = { "new_kid:str", "fingerprint:str", "grace_ms:int" },
  returns = { "rotated", "noop" },   -- both end with how many open waitpoints other kids signed
  errors  = { "invalid_kid", "invalid_input", "invalid_grace_ms", "rotation_conflict" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not is_kid(a.new_kid) then return reply.reject("invalid_kid", KID) end
    if not is_fingerprint(a.fingerprint) then return reply.reject("invalid_input", "fingerprint") end
    if a.grace_ms < 0 or a.grace_ms > LIMITS.SPAN_MAX_MS then return reply.reject("invalid_grace_ms", a.grace_ms) end
    local list, open, current = kids_of(p)
    local gone, live, opens, known = {}, 0, (open[a.new_kid] or 0) > 0, false
    for i = 1, #list do
      local kid, fingerprint, until_ms = unpack(list[i])
      -- Open waitpoints know the name alone: under another secret of that name, tokens of the first would open them again.
      if kid == a.new_kid and fingerprint ~= a.fingerprint and (kid == current or until_ms > p.now or opens) then
        return reply.reject("rotation_conflict", "kid " .. kid .. " stands for another secret: choose a new name")
      end
      known = known or kid == a.new_kid
      if kid ~= current and until_ms <= p.now and kid ~= a.new_kid then gone[#gone + 1] = "k" .. kid
      elseif kid ~= a.new_kid then live = live + 1 end
    end
    if opens and not known then
      return reply.reject("rotation_conflict", "a secret that kid " .. a.new_kid .. " stood for signed waitpoints that are open: choose a new name")
    end
    if a.new_kid == current then
      fence.replayed(p)
      return { "noop", current, others(open, current) }
    end
    if live >= LIMITS.KIDS_N then return reply.reject("rotation_conflict", live .. " kids still verify: wait until their grace is over") end
    local forgotten = #gone
    for name, count in pairs(open) do -- order-free
      if count <= 0 and name ~= a.new_kid and name ~= current then gone[#gone + 1] = "n" .. name end
    end
    table.sort(gone)
    if #gone > 0 then redis.call("HDEL", keys.kids(p), unpack(gone)) end
    local set = { "current", a.new_kid, "k" .. a.new_kid, a.fingerprint .. " 0" }
    if current then
      local _, _, fingerprint = waitpoints.kid(p, current)
      -- Never 0, which is the current one's: a grace of nothing ends now.
      set[5], set[6] = "k" .. current, fingerprint .. " " .. string.format("%.0f", math.max(1, p.now + a.grace_ms))
    end
    redis.call("HSET", keys.kids(p), unpack(set))
    events.note(p, "secret rotated " .. (current or "-") .. " " .. a.new_kid)
    return { "rotated", current or "", a.new_kid, forgotten, others(open, a.new_kid) }
  end,
}

define {
  name    = "ff_list_waitpoint_hmac_kids",
  args    = {},
  returns = { "kids" },   -- the one that signs ("": none), those that verify: kid, until
  errors  = {},
  flags   = { "no-writes" },
  run = function(p)
    local list, _, current = kids_of(p)
    local out = {}
    for i = 1, #list do
      if list[i][1] ~= current and list[i][3] > p.now then out[#out + 1] = { list[i][1], list[i][3] } end
    end
    return { "kids", current or "", out }
  end,
}
