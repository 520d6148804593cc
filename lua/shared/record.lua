-- shared/record.lua -- an execution's record: one small hash, only set fields.
--
-- Fields have short names in the store (15 of them stay a 400-byte listpack) and long ones in code; this
-- table is where they meet. Values stay within 64 bytes, or the hash changes its encoding and triples:
-- free text lives in the detail hash. A loaded record is a table of strings with `id` and `key` beside the fields.

local record = {}

-- What a record is written as. One that says no schema is of the first. A record of an older one is brought up when it
-- is touched, and by the ticker (shared/walk.lua): STEPS[n] makes a record of schema n one of n + 1, under stored names.
record.SCHEMA = 1
record.STEPS = {}

local SHORT = {
  state = "s", reason = "b", next = "n",           -- the three words all seven state dimensions follow from
  lane = "l", task = "t", version = "v", namespace = "ns", priority = "p",
  turn = "q", cap = "cp", fair = "fk",             -- place in the queue, required capabilities, fairness key
  created_at = "c", started_at = "st", attempt_started_at = "as", moved_at = "m",
  at = "u",   -- the state's own instant: when a lease runs out, a delay is over, a grant lapses; when it ended
  policy = "po", digest = "dg", payload_encoding = "pe", result_encoding = "re", result_kept = "r", result = "rs",  -- a short result stands in the record
  attempt = "ai", lease_epoch = "ep", lease_id = "li", attempt_id = "at",  -- attempt_id only where it differs
  worker = "w", heard = "h",                      -- worker only where lease_id does not say
  attempt_deadline_at = "ax", attempt_left_ms = "al", deadline_at = "dl", deadline_ms = "dm",
  ended_by = "op",                                 -- the operation that ended the last lease, for replays of it; "-": another has begun
  retries = "rt", crashes = "cr", unseen = "un", hand_backs = "hb", replays = "rp", run = "rn",
  schema = "sv",                                   -- absent: the first
  eligible_at = "el",                              -- since when it waits, where that is not its creation (an aged lane asks)
  cancel_until = "cq", waiter = "wt", detail = "d", progress = "pg", grant = "g", category = "fc",
  journal = "jn",                                  -- there is one: the run it began in and the task version that began it
  suspension = "su", suspend_until = "sq",         -- it waits or has waited; until when, while it does
  waitpoints = "wp", streams = "sm",               -- it has opened some; the last attempt that has emitted frames
  signals_n = "sl",                                -- how many signals it takes, where its policy says fewer than anybody may send
  paused = "pa", unpinned = "uv",                  -- an operator's pause; any version of its task may run it
  flow = "fl", node = "no",                        -- the flow it is a member of, and its number there
  deps = "dp", outs = "ou",                        -- it has edges from others; others depend on it
  inputs = "in",                                   -- its payload is what its upstreams returned: "1" the only one's, "*" a list
  children = "ch", due = "du",                     -- it has spawned some; not before, once it waits for nothing
  resolving = "rz", reopening = "ro",              -- how far its edges to others are resolved, or reopened by its replay
  unhandled = "uh",                                -- its end is one that nobody handles: it makes the flow's outcome
  adm = "am", unique = "uq", lane_quota = "lq",    -- its admission set; how it holds a unique key; it holds a place of its lane's quota
  held_bytes = "hz",                               -- payload bytes it counts for in its lane's backlog
  saga_open = "sg", pending_outcome = "pq", size = "z", more = "x",
}
local LONG
local function long_names()
  LONG = {}
  for long, short in pairs(SHORT) do LONG[short] = long end -- order-free
  return LONG
end

-- Fields that nearly every record has, in the order of the read below; the rest is rare, and a record that
-- has any of it says so in `more`. A few are written once and read only by load_all, so they need no mark.
local COMMON = { state = true, lane = true, task = true, created_at = true, policy = true, turn = true, lease_epoch = true,
  lease_id = true, at = true, priority = true, detail = true, fair = true }
local QUIET = { schema = true, digest = true, result = true, result_kept = true, result_encoding = true, size = true }

-- Whether a field must be announced by `more`.
function record.is_rare(name) return not (COMMON[name] or QUIET[name]) end

-- The record of an id with everything it has, or nil.
--
-- What nearly every record would say the same is not stored: a first attempt's index (0), its start (its
-- epoch, which is the instant of its claim) and its kind (initial) are filled in here.
function record.load_all(p, id)
  local key = keys.core(p, id)
  local flat = redis.call("HGETALL", key)
  local n = #flat
  if n == 0 then return nil end
  if p.whole then
    flat = record.migrate(p, key, flat)
    n = #flat
  end
  -- What many records have stands in the constructor: a table that grows field by field is laid out anew five times.
  local long, x = LONG or long_names(), { id = id, key = key, state = false, lane = false, task = false, created_at = false,
    policy = false, turn = false, lease_epoch = false, lease_id = false, at = false, priority = false, detail = false, fair = false,
    digest = false, result = false, next = "initial" }
  for i = 1, n, 2 do
    local name = long[flat[i]]
    if name then x[name] = flat[i + 1] end -- a field of a newer release is kept and left alone
  end
  if x.lease_id then
    x.attempt = x.attempt or "0"
    -- A lease that was given back before anything began (attempt -1) is no start.
    if x.attempt ~= "-1" then x.started_at = x.started_at or x.lease_epoch end
  end
  return x
end

-- The record of an id as transitions need it, or nil: digest and result are left out. Most records have
-- common fields only, and reading those by name costs half of reading all there is. false reads as absent.
function record.load(p, id)
  if p.whole then return record.load_all(p, id) end
  local key = keys.core(p, id)
  local r = redis.call("HMGET", key, "s", "x", "l", "t", "c", "po", "q", "ep", "li", "u", "p", "d", "fk")
  if not r[1] then return nil end
  if r[2] then return record.load_all(p, id) end
  local lease_id = r[9]
  return { id = id, key = key, state = r[1], lane = r[3], task = r[4], created_at = r[5], policy = r[6], turn = r[7], lease_epoch = r[8],
    lease_id = lease_id, at = r[10], attempt = lease_id and "0", next = "initial", priority = r[11], detail = r[12], fair = r[13],
    started_at = lease_id and r[8] }
end

-- The same for what is about to be leased: one that was leased before or has rare fields is read whole, and so is the
-- next one, which will be like it: those that resume come in rows, and so do members of flows.
function record.load_queued(p, id)
  if p.whole then return record.load_all(p, id) end
  if p.leased_before then
    local x = record.load_all(p, id)
    p.leased_before = x and (x.lease_id or x.more)
    return x
  end
  local key = keys.core(p, id)
  local r = redis.call("HMGET", key, "s", "x", "li", "l", "t", "c", "po", "p", "d")
  if not r[1] then return nil end
  if r[2] or r[3] then
    p.leased_before = true
    return record.load_all(p, id)
  end
  return { id = id, key = key, state = r[1], lane = r[4], task = r[5], created_at = r[6], policy = r[7],
    priority = r[8], detail = r[9], next = "initial" }
end

-- The same with what the end of a lease needs and no more; for calls that do nothing else with it.
function record.load_held(p, id)
  if p.whole then return record.load_all(p, id) end
  if p.held_more then
    local x = record.load_all(p, id)
    p.held_more = x and x.more
    return x
  end
  local key = keys.core(p, id)
  local r = redis.call("HMGET", key, "s", "x", "l", "ep", "li", "u")
  if not r[1] then return nil end
  if r[2] then
    p.held_more = true
    return record.load_all(p, id)
  end
  local lease_id = r[5]
  return { id = id, key = key, state = r[1], lane = r[3], lease_epoch = r[4], lease_id = lease_id, at = r[6],
    attempt = lease_id and "0", result = false }   -- room for the result it may end with
end

-- The same with what it takes to record one more step under a lease that need not be renewed yet. It is to be read, not
-- written: whoever finds that there is more to do loads the record whole.
function record.load_leased(p, id)
  if p.whole then return record.load_all(p, id) end
  local key = keys.core(p, id)
  local r = redis.call("HMGET", key, "s", "ep", "li", "u", "jn", "h", "at", "ai", "cq")
  if not r[1] then return nil end
  local lease_id = r[3]
  return { id = id, key = key, state = r[1], lease_epoch = r[2], lease_id = lease_id, at = r[4], journal = r[5], heard = r[6],
    attempt_id = r[7], attempt = r[8] or lease_id and "0", cancel_until = r[9], next = "initial", partial = true }
end

-- A record's flat fields as this release writes them; stored so, unless the call only reads. While policies in use are
-- looked for, whoever touches a record says which it has.
function record.migrate(p, key, flat)
  local raw = {}
  for i = 1, #flat, 2 do raw[flat[i]] = flat[i + 1] end
  if p.marking and raw[SHORT.policy] then
    p.marks = p.marks or {}
    p.marks[raw[SHORT.policy]] = true
  end
  local from = tonumber(raw[SHORT.schema] or "1")
  if from == record.SCHEMA then return flat end
  if from > record.SCHEMA then error("FFBUG " .. key .. " was written by a newer release: upgrade the library") end
  for step = from, record.SCHEMA - 1 do record.STEPS[step](raw) end
  raw[SHORT.schema] = record.SCHEMA .. ""
  local names, set, gone = {}, {}, {}
  for name in pairs(raw) do names[#names + 1] = name end -- order-free
  table.sort(names)
  for i = 1, #names do set[#set + 1], set[#set + 2] = names[i], raw[names[i]] end
  for i = 1, #flat, 2 do if raw[flat[i]] == nil then gone[#gone + 1] = flat[i] end end
  if not p.reads_only then
    redis.call("HSET", key, unpack(set))
    if #gone > 0 then redis.call("HDEL", key, unpack(gone)) end
  end
  return set
end

-- A number as the store keeps it. A batch writes the same few instants over and over: formatted once.
function record.text(p, value)
  local text = p.texts[value]
  if not text then
    text = string.format("%.0f", value)
    p.texts[value] = text
  end
  return text
end

-- The arguments of one HSET, reused: growing a fresh table for every write costs more than the write.
local scratch = {}

-- Write fields given as name, value, name, value; false removes one. Keeps the loaded table in step.
function record.write(p, x, ...)
  local given, n, gone = { ... }, 0, nil
  for i = 1, select("#", ...), 2 do
    local name, value = given[i], given[i + 1]
    if name and value then
      if type(value) == "number" then value = record.text(p, value) end
      scratch[n + 1] = SHORT[name]
      scratch[n + 2] = value
      n = n + 2
      x[name] = value
      if not x.more and record.is_rare(name) then
        scratch[n + 1], scratch[n + 2] = "x", "1"
        n = n + 2
        x.more = "1"
      end
    elseif name and x[name] then
      gone = gone or {}
      gone[#gone + 1] = SHORT[name]
      x[name] = nil
    end
  end
  if n > 0 then redis.call("HSET", x.key, unpack(scratch, 1, n)) end
  if gone then redis.call("HDEL", x.key, unpack(gone)) end
end

-- The same for two or three texts of common or quiet fields, on the path of every job.
function record.put(x, n1, v1, n2, v2, n3, v3, n4, v4)
  x[n1], x[n2] = v1, v2
  if not n3 then return redis.call("HSET", x.key, SHORT[n1], v1, SHORT[n2], v2) end
  x[n3] = v3
  if not n4 then return redis.call("HSET", x.key, SHORT[n1], v1, SHORT[n2], v2, SHORT[n3], v3) end
  x[n4] = v4
  return redis.call("HSET", x.key, SHORT[n1], v1, SHORT[n2], v2, SHORT[n3], v3, SHORT[n4], v4)
end

-- Field names as the store has them, for a list prepared once and written many times (state.create).
function record.short(name) return SHORT[name] end

-- Free text and tags, in the detail hash; the record only says that there is one.
function record.describe(p, x, ...)
  redis.call("HSET", keys.detail(p, x.id), ...)
  if not x.detail then record.write(p, x, "detail", "1") end
end

function record.number(x, name) return tonumber(x[name]) or 0 end

-- Who holds (or held) the lease. Ids minted by a batch claim begin with the worker's instance; the event
-- feed carries the lease id instead, because this match would cost more than the event.
function record.worker(x)
  if x.worker then return x.worker end
  return x.lease_id and string.match(x.lease_id, "^(.*)%.%w+%.%d+%.%d+$") or ""
end

-- The result, or nil: short ones stand in the record, others in their own key.
function record.result(p, x)
  return x.result or (x.result_kept and redis.call("GET", keys.result(p, x.id))) or nil
end

function record.fence(x)
  return (x.lease_id or "") .. " " .. (x.lease_epoch or "0") .. " " .. (x.attempt_id or x.lease_id or "")
end

-- Tags of a record, flat: key, value, ... in key order. Stored in the detail hash under "t:<key>".
function record.tags(p, x)
  local tags = {}
  if not x.detail then return tags end
  local flat = redis.call("HGETALL", keys.detail(p, x.id))
  local names, values = {}, {}
  for i = 1, #flat, 2 do
    if string.sub(flat[i], 1, 2) == "t:" then
      local name = string.sub(flat[i], 3)
      names[#names + 1] = name
      values[name] = flat[i + 1]
    end
  end
  table.sort(names)
  for i = 1, #names do tags[#tags + 1] = names[i]; tags[#tags + 1] = values[names[i]] end
  return tags
end
