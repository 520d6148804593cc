-- worker.lua -- who is there, and which tasks they know.
--
-- Workers and task descriptors live in the {w:L} partitions. A worker that starts also tells every
-- execution partition which tasks it brings, so that work blocked as unknown goes back to its queue.

define {
  name    = "ff_register_worker",
  args    = { "worker_instance_id:str", "info:blob", "ttl_ms:int" },
  returns = { "registered" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not names.is_instance(a.worker_instance_id) then
      return reply.reject("invalid_input", "worker_instance_id")
    end
    if #a.info > LIMITS.WORKER_INFO_BYTES then return reply.reject("invalid_input", "info") end
    if a.ttl_ms < 0 or a.ttl_ms > LIMITS.LEASE_TTL_MAX_MS then return reply.reject("invalid_input", "ttl_ms") end
    if a.ttl_ms == 0 then   -- leaving
      redis.call("ZREM", keys.workers(p), a.worker_instance_id)
      redis.call("UNLINK", keys.worker(p, a.worker_instance_id))
    else
      redis.call("ZADD", keys.workers(p), p.now + a.ttl_ms, a.worker_instance_id)
      redis.call("SET", keys.worker(p, a.worker_instance_id), string.format("%.0f ", p.now) .. a.info)
      -- Not pushed back by every sign of life: the dead would then stay while anybody lives.
      timers.reap_first(p, "workers", "all", p.now + LIMITS.WAITER_MS)
    end
    return { "registered", p.now }
  end,
}

-- Those that are alive, by name; or the dead: whose time has run out, and who did not say that they leave. They are
-- remembered for an hour.
define {
  name    = "ff_list_workers",
  args    = { "after:str?", "limit:int", "dead:bool" },
  returns = { "workers" },
  errors  = { "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local now = record.text(p, p.now)
    local alive, page = redis.call("ZRANGE", keys.workers(p), a.dead and "-inf" or now, a.dead and "(" .. now or "+inf", "BYSCORE", "WITHSCORES"), {}
    local rows = {}
    for i = 1, #alive, 2 do if not a.after or alive[i] > a.after then rows[#rows + 1] = { alive[i], tonumber(alive[i + 1]) } end end
    table.sort(rows, function(l, r) return l[1] < r[1] end)
    for i = 1, math.min(#rows, a.limit) do
      local seen, info = string.match(redis.call("GET", keys.worker(p, rows[i][1])) or "", "^(%d*) ?(.*)$")
      page[i] = { rows[i][1], rows[i][2], info, tonumber(seen) or 0 }
    end
    return { "workers", page, #rows > a.limit and page[#page][1] or "" }
  end,
}

-- Task descriptors, one JSON text per task name; the newest version a worker published wins.
define {
  name    = "ff_publish_tasks",
  args    = { "items:rows(task:str,version:int,descriptor:blob)" },
  returns = { "published" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    for i = 1, #a.items do
      local row = a.items[i]
      if row.bad or not names.is_name(row.task) or #row.descriptor > LIMITS.WORKER_INFO_BYTES
        or row.version < 1 or row.version > LIMITS.VERSION_MAX then
        return reply.reject("invalid_input", "items")
      end
    end
    local n = 0
    for i = 1, #a.items do
      local row = a.items[i]
      local known = redis.call("HGET", keys.tasks(p), row.task)
      local version = known and tonumber(string.match(known, "^(%d+) ")) or 0
      if row.version >= version then
        redis.call("HSET", keys.tasks(p), row.task, row.version .. " " .. row.descriptor)
        n = n + 1
      end
    end
    return { "published", n }
  end,
}

define {
  name    = "ff_list_tasks",
  args    = { "names:json" },
  returns = { "tasks" },
  errors  = { "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if type(a.names) ~= "table" or #a.names > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "names") end
    local names = a.names
    for i = 1, #names do if type(names[i]) ~= "string" then return reply.reject("invalid_input", "names") end end
    if #names == 0 then
      names = redis.call("HKEYS", keys.tasks(p))
      table.sort(names)
    end
    local out = {}
    for i = 1, math.min(#names, LIMITS.PAGE_MAX_N) do
      local known = redis.call("HGET", keys.tasks(p), names[i])
      if known then
        local version, descriptor = string.match(known, "^(%d+) (.*)$")
        out[#out + 1] = { names[i], tonumber(version), descriptor }
      end
    end
    return { "tasks", out }
  end,
}

-- A worker brings these tasks ("name@version"): what was blocked as unknown for want of them is ready again.
define {
  name    = "ff_announce_tasks",
  args    = { "tasks:json" },
  returns = { "announced" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if type(a.tasks) ~= "table" or #a.tasks > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "tasks") end
    local brings = {}
    for i = 1, #a.tasks do brings[a.tasks[i]] = true end
    local waiting, n = redis.call("ZRANGE", keys.unknown(p), 0, LIMITS.PAGE_MAX_N - 1), 0
    for i = 1, #waiting do
      local x = record.load(p, waiting[i])
      if not x or x.state ~= "blocked" or x.reason ~= "waiting_for_capable_worker" then
        redis.call("ZREM", keys.unknown(p), waiting[i])
      elseif brings[x.task .. "@" .. (x.version or "1")] then
        redis.call("ZREM", keys.unknown(p), x.id)
        timers.clear(p, "unknown_task", x.id)
        state.requeue(p, x, "task_known", "reason", false)
        n = n + 1
      end
    end
    return { "announced", n }
  end,
}
