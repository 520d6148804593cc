-- shared/record.lua -- an execution's record: one small hash, only set fields.
--
-- Fields have short names in the store (15 of them stay a 400-byte listpack) and long ones in code; this
-- table is where they meet. Values stay within 64 bytes, or the hash changes its encoding and triples:
-- free text lives in the detail hash. A loaded record is a table of strings with `id` and `key` beside the fields.

local record = {}

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
  ended_by = "op",                                 -- the operation that ended the last lease, for replays of it
  retries = "rt", crashes = "cr", unseen = "un", hand_backs = "hb", replays = "rp", run = "rn",
  cancel_until = "cq", waiter = "wt", detail = "d", progress = "pg", grant = "g", category = "fc",
  flow = "fl", saga_open = "sg", pending_outcome = "pq", size = "z",
}
local LONG
local function long_names()
  LONG = {}
  for long, short in pairs(SHORT) do LONG[short] = long end -- order-free
  return LONG
end

-- The record of an id, or nil.
--
-- What nearly every record would say the same is not stored: a first attempt's index (0), its start (its
-- epoch, which is the instant of its claim) and its kind (initial) are filled in here.
function record.load(p, id)
  local key = keys.core(p, id)
  local flat = redis.call("HGETALL", key)
  local n = #flat
  if n == 0 then return nil end
  local long = LONG or long_names()
  -- Named here so that the table has its size at once; false reads as absent everywhere.
  local x = { id = id, key = key, state = false, next = false, lane = false, task = false, created_at = false, digest = false, policy = false,
    turn = false, lease_epoch = false, lease_id = false, at = false, attempt = false, started_at = false, detail = false }
  for i = 1, n, 2 do
    local name = long[flat[i]]
    if name then x[name] = flat[i + 1] end -- a field of a newer release is kept and left alone
  end
  if not x.next then x.next = "initial" end
  if x.lease_id then
    if not x.attempt then x.attempt = "0" end
    if not x.started_at then x.started_at = x.lease_epoch end
  end
  return x
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
  for i = 1, #given, 2 do
    local name, value = given[i], given[i + 1]
    if value then
      if type(value) == "number" then value = record.text(p, value) end
      scratch[n + 1] = SHORT[name]
      scratch[n + 2] = value
      n = n + 2
      x[name] = value
    elseif x[name] then
      gone = gone or {}
      gone[#gone + 1] = SHORT[name]
      x[name] = nil
    end
  end
  if n > 0 then redis.call("HSET", x.key, unpack(scratch, 1, n)) end
  if gone then redis.call("HDEL", x.key, unpack(gone)) end
end

-- Field names as the store has them, for a list prepared once and written many times (state.create).
function record.short(name) return SHORT[name] end

-- Free text and tags, in the detail hash; the record only says that there is one.
function record.describe(p, x, ...)
  redis.call("HSET", keys.detail(p, x.id), ...)
  if not x.detail then record.write(p, x, "detail", "1") end
end

function record.number(x, name) return tonumber(x[name]) or 0 end
function record.full_id(p, id) return p.id_prefix .. id end

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
