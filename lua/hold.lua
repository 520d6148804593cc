-- hold.lua -- stop work of one task, or with one tag, from starting; let it go again.

local function check(a)
  if not (string.find(a.what, "^task:[^%c%s{}\128-\255]+$") or string.find(a.what, "^tag:[a-z][a-z0-9_]*%.[%w_.%-]+=.*$")) or #a.what > LIMITS.HOLD_WHAT_BYTES then
    return reply.reject("invalid_input", "what is task:<name> or tag:<key>=<value>")
  end
end

define {
  name    = "ff_hold",
  args    = { "what:str", "reason:str" },
  returns = { "held", "already_held" },
  errors  = { "invalid_input", "too_many_names" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local refusal = check(a)
    if refusal then return refusal end
    local key = keys.holds(p)
    if redis.call("HEXISTS", key, a.what) == 1 then return { "already_held" } end
    if p.holds_n >= LIMITS.HOLDS_N then return reply.reject("too_many_names", "holds") end
    redis.call("HSET", key, a.what, names.cut(a.reason, LIMITS.HOLD_REASON_BYTES))
    lanes.note(p, "holds", p.holds_n + 1)
    partition.mark_rare(p)
    events.note(p, "hold " .. a.what)
    return { "held" }
  end,
}

define {
  name    = "ff_release",
  args    = { "what:str" },
  returns = { "released", "not_held" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local refusal = check(a)
    if refusal then return refusal end
    if redis.call("HDEL", keys.holds(p), a.what) == 0 then return { "not_held" } end
    lanes.note(p, "holds", math.max(0, p.holds_n - 1))
    events.note(p, "release " .. a.what)
    redis.call("HINCRBY", p.key, "releases", 1)
    timers.set(p, "release", "held", p.now)
    return { "released" }
  end,
}

-- Let go what nothing holds any more, a bounded number per tick. Entries are scored by the number of the release
-- they were last looked at for (0: none yet), so that any number of those which another hold still keeps cannot
-- stand in front of what is free.
due.on("release", function(p, id)
  local release = tonumber(redis.call("HGET", p.key, "releases") or "0")
  local cursor = redis.call("ZRANGE", keys.held(p), "-inf", "(" .. release, "BYSCORE", "LIMIT", 0, LIMITS.ROWS_N)
  for i = 1, #cursor do
    local x = record.load(p, cursor[i])
    local still = x and x.state == "blocked" and x.reason == "paused_by_operator"
    if not still or not holds.of(p, x) then
      redis.call("ZREM", keys.held(p), cursor[i])
      if still then
        state.requeue(p, x, "released", "reason", false)
      end
    else
      redis.call("ZADD", keys.held(p), release, cursor[i])
    end
  end
  if #cursor == LIMITS.ROWS_N then timers.set(p, "release", id, p.now) end
end)

define {
  name    = "ff_list_holds",
  args    = {},
  returns = { "holds" },
  errors  = {},
  flags   = { "no-writes" },
  run = function(p)
    local flat, names, reasons, out = redis.call("HGETALL", keys.holds(p)), {}, {}, {}
    for i = 1, #flat, 2 do
      names[#names + 1] = flat[i]
      reasons[flat[i]] = flat[i + 1]
    end
    table.sort(names)
    for i = 1, #names do out[i] = { names[i], reasons[names[i]] } end
    return { "holds", out }
  end,
}
