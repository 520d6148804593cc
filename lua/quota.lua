-- quota.lua -- create, change, read and delete quotas; ask for places, give them back.

local UNBOUND = 9007199254740991

-- What is wrong with limits, or nil.
local function wrong(window_s, rate, most)
  if window_s < 0 or window_s > LIMITS.QUOTA_WINDOW_S then return "window_seconds is from 0 to " .. LIMITS.QUOTA_WINDOW_S end
  if rate < 0 or rate > LIMITS.QUOTA_N then return "max_requests_per_window is from 0 to " .. LIMITS.QUOTA_N end
  if most < 0 or most > LIMITS.QUOTA_N then return "max_concurrent is from 0 to " .. LIMITS.QUOTA_N end
  if rate > 0 and window_s == 0 then return "max_requests_per_window needs window_seconds" end
end

-- The same id again is answered, whatever its limits are now; `ff_change_quota` changes them.
define {
  name    = "ff_create_quota_policy",
  args    = { "quota_policy_id:id", "name:str", "namespace:str", "window_seconds:int", "max_requests_per_window:int", "max_concurrent:int" },
  returns = { "created", "already_satisfied" },
  errors  = { "invalid_input", "invalid_quota_spec" },
  flags   = {},
  run = function(p, a)
    if a.name ~= "" and not names.is_name(a.name) then return reply.reject("invalid_input", "name") end
    if not names.is_name(a.namespace) then return reply.reject("invalid_input", "namespace") end
    local what = wrong(a.window_seconds, a.max_requests_per_window, a.max_concurrent)
    if what then return reply.reject("invalid_quota_spec", what) end
    local id = a.quota_policy_id
    if quotas.load(p, id) then
      fence.replayed(p)
      return { "already_satisfied", p.id_prefix .. id }
    end
    -- Gens begin with the time: those of a quota that was there before are lower.
    redis.call("HSET", keys.quota(p, id), "name", a.name, "ns", a.namespace, "window", a.window_seconds * 1000,
      "rate", a.max_requests_per_window, "most", a.max_concurrent, "created", p.now, "gen", p.now)
    redis.call("ZADD", keys.quotas(p), 0, id)
    return { "created", p.id_prefix .. id }
  end,
}

define {
  name    = "ff_change_quota",
  args    = { "quota_policy_id:id", "window_seconds:int?", "max_requests_per_window:int?", "max_concurrent:int?" },
  returns = { "changed" },   -- the three limits
  errors  = { "quota_policy_not_found", "invalid_quota_spec" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local id = a.quota_policy_id
    local q = quotas.load(p, id)
    if not q then return reply.reject("quota_policy_not_found") end
    local window = a.window_seconds or q.window / 1000
    local rate, most = a.max_requests_per_window or q.rate, a.max_concurrent or q.most
    local what = wrong(window, rate, most)
    if what then return reply.reject("invalid_quota_spec", what) end
    if window * 1000 == q.window and rate == q.rate and most == q.most then
      fence.replayed(p)
    else
      redis.call("HSET", keys.quota(p, id), "window", window * 1000, "rate", rate, "most", most)
      quotas.changed(p, id, redis.call("HINCRBY", keys.quota(p, id), "gen", 1))
    end
    return { "changed", window, rate, most }
  end,
}

define {
  name    = "ff_read_quota",
  args    = { "quota_policy_id:id", "key:str?" },
  returns = { "quota" },
  errors  = { "quota_policy_not_found", "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    local id = a.quota_policy_id
    local q, word = quotas.load(p, id), a.key or "-"
    if not q then return reply.reject("quota_policy_not_found") end
    if not quotas.is_key(word) then return reply.reject("invalid_input", "key: pass its word") end
    local s = quotas.subject(p, q, id, quotas.digest(word))
    local waiting = redis.call("ZCOUNT", s.refused, p.now + 1, "+inf") + redis.call("ZCOUNT", s.refused, "-inf", -p.now - 1)
    return { "quota", q.name, q.ns, q.window / 1000, q.rate, q.most, q.created, redis.call("ZCARD", keys.subjects(p, id)),
      s.kept - s.old, s.active, quotas.wait(p, s, q.window, q.rate), waiting }
  end,
}

define {
  name    = "ff_list_quotas",
  args    = { "cursor:str?", "limit:int" },
  returns = { "quotas_page" },   -- rows, cursor
  errors  = { "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    local refusal, ids, more = names.page(p, keys.quotas(p), a.cursor, a.limit)
    if refusal then return refusal end
    local rows = {}
    for i = 1, #ids do
      local q = quotas.load(p, ids[i])
      rows[i] = { p.id_prefix .. ids[i], q.name, q.ns, q.window / 1000, q.rate, q.most, redis.call("ZCARD", keys.subjects(p, ids[i])) }
    end
    return { "quotas_page", rows, more }
  end,
}

-- What runs keeps its place until it ends; windows go, and who waits is told, by tick.
define {
  name    = "ff_delete_quota",
  args    = { "quota_policy_id:id" },
  returns = { "deleted" },
  errors  = { "quota_policy_not_found" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local id = a.quota_policy_id
    local q = quotas.load(p, id)
    if not q then return reply.reject("quota_policy_not_found") end
    redis.call("UNLINK", keys.quota(p, id))
    redis.call("ZREM", keys.quotas(p), id)
    if redis.call("EXISTS", keys.subjects(p, id)) == 1 then quotas.changed(p, id, q.gen + 1) end
    return { "deleted" }
  end,
}

-- What of a request cannot be read, or nil.
local function unreadable(row)
  if row.bad then return row.bad end
  if not quotas.is_key(row.key) then return "key" end
  if not quotas.is_execution(row.execution_id) then return "execution_id" end
  if row.epoch < 1 then return "epoch" end
  if row.adm ~= "" and not quotas.is_queue(row.partition, row.adm) then return "partition or adm" end
end

-- Places and starts for claimed executions, each row on its own. A quota that is not there lets nothing start: it may be
-- one that was deleted by mistake, and what waits can be let go by creating it again.
define {
  name    = "ff_admit_many",
  args    = { "items:rows(quota_policy_id:id,key:str,execution_id:str,epoch:int,until_ms:int,partition:str,adm:str)" },
  returns = { "admitted_many" },   -- rows: word, retry_after_ms, gen of the next release, code and what is wrong
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local out = {}
    for i = 1, #a.items do
      local row = a.items[i]
      local what = unreadable(row)
      local q = not what and quotas.load(p, row.quota_policy_id)
      if what then out[i] = { "error", 0, 0, "invalid_input " .. what }
      elseif not q then out[i] = { "not_found", LIMITS.HALT_MS, 0, "" }
      else
        local s = quotas.subject(p, q, q.id, quotas.digest(row.key))
        local word, wait = quotas.admit(p, q, s, row)
        out[i] = { word, wait, q.gen + 1, "" }
      end
    end
    return { "admitted_many", out }
  end,
}

-- ---- for programs that admit by themselves -------------------------------------------------------------

-- One request, not of a lease but of the execution as such. The quota's limits hold; those of the call can only tighten
-- what the quota counts. The place is the mark by which the same request is known again, so there is one without a limit
-- of places, too.
define {
  name    = "ff_check_admission_and_record",
  args    = { "at:id", "execution_id:str", "window_seconds:int", "rate_limit:int", "concurrency_cap:int", "jitter_ms:int?" },
  returns = { "admitted", "already_admitted", "rate_exceeded", "concurrency_exceeded" },
  errors  = { "quota_policy_not_found", "invalid_input", "invalid_quota_spec" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not quotas.is_execution(a.execution_id) then return reply.reject("invalid_input", "execution_id") end
    if (a.jitter_ms or 0) < 0 then return reply.reject("invalid_input", "jitter_ms") end
    local q = quotas.load(p, a.at)
    if not q then return reply.reject("quota_policy_not_found") end
    local window, rate, cap = a.window_seconds * 1000, a.rate_limit, a.concurrency_cap
    if window < 0 or rate < 0 or cap < 0 then return reply.reject("invalid_quota_spec", "limits are whole numbers from 0") end
    if rate > 0 and (q.rate == 0 or window > q.window) then
      return reply.reject("invalid_quota_spec", "the quota counts starts of " .. (q.rate == 0 and 0 or q.window / 1000) .. " seconds: ask for no longer window")
    end
    local s = quotas.subject(p, q, q.id, "-")
    if redis.call("HEXISTS", s.running, a.execution_id) == 1 then
      fence.replayed(p)
      return { "already_admitted" }
    end
    local wait = math.max(quotas.wait(p, s, q.window, q.rate), quotas.wait(p, s, window, rate))
    if wait > 0 then
      local jitter = tonumber(string.sub(redis.sha1hex(a.execution_id), 1, 8), 16) % ((a.jitter_ms or 0) + 1)
      return { "rate_exceeded", wait + jitter }
    end
    local most = math.min(q.most > 0 and q.most or UNBOUND, cap > 0 and cap or UNBOUND)
    if s.active >= most then return { "concurrency_exceeded" } end
    local row = { execution_id = a.execution_id, key = "-", epoch = 0, until_ms = p.now + LIMITS.RESERVATION_MS }
    -- Each release raises gen, so a start after one is another start.
    quotas.take(p, q, s, row, true, string.format("%.0f", q.gen))
    return { "admitted" }
  end,
}

-- A quota asks whether an execution runs that was admitted without a lease.
inbox.on("runs", function(p, body)
  local from, rest, execution_id = string.match(body, "^({q:%d+}) (q %S+ %S+) (%S+) 0$")
  if not from or not quotas.is_execution(execution_id) or string.sub(execution_id, 1, p.id_prefix_n) ~= p.id_prefix then return end
  local runs = redis.call("HGET", keys.core(p, string.sub(execution_id, -36)), record.short("state")) == "active"
  inbox.wake(p, from, "verified", rest .. " " .. execution_id .. " 0 " .. (runs and "1" or "0"))
end)

define {
  name    = "ff_release_admission",
  args    = { "at:id", "execution_id:str" },
  returns = { "released" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not quotas.is_execution(a.execution_id) then return reply.reject("invalid_input", "execution_id") end
    local q = quotas.load(p, a.at)
    local s = quotas.subject(p, q, a.at, "-")
    if not quotas.release(p, q, s, a.execution_id, UNBOUND, false, true) then fence.replayed(p) end
    return { "released" }
  end,
}
