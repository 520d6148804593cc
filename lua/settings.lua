-- settings.lua -- what operators set: one revisioned record per lane and one for the whole store.
--
-- The records stand in {w:0}. Every change takes the next revision of the store, so a partition that has applied
-- everything up to a revision says so in one number (`settings` in its header), and the ticker brings what it lacks.
-- Functions read a copy in the header of their own partition.
--
--   lane:<name>  state     active: everything. paused: takes work, starts none. draining: starts, takes none. disabled: neither
--                aged_s    seconds a point of priority is worth (shared/order.lua); 0: strict
--                age_ms, count, bytes   how much of what has ended is kept, in the whole store; 0: no bound of that kind
--   store        gate_pct, gate_bytes   submits are refused when the server uses so much of its maxmemory, or so many bytes

local STATES = { active = true, paused = true, draining = true, disabled = true }
local WHOLE = 9007199254740991
local KINDS = {
  lane = {
    { name = "aged_s", default = 0, most = LIMITS.AGED_MAX_S },
    { name = "age_ms", default = LIMITS.RETENTION_AGE_MS, most = LIMITS.SPAN_MAX_MS },
    { name = "bytes", default = 0, most = WHOLE },
    { name = "count", default = 0, most = WHOLE },
    { name = "state", default = "active", words = STATES },
  },
  store = {
    { name = "gate_bytes", default = 0, most = WHOLE },
    { name = "gate_pct", default = LIMITS.GATE_PCT, most = 100 },
  },
}

-- The fields of a record's kind and, of a lane, its name; nil for a name nothing has.
local function kind_of(name)
  local lane = string.match(name, "^lane:(.*)$")
  if lane then return names.is_lane(lane) and KINDS.lane or nil, lane end
  if name == "store" then return KINDS.store end
end

-- Packed values as a table, every field there; nil and what is wrong with them.
local function read_values(fields, packed, known)
  local flat, given = names.unpack_pairs(packed), {}
  if not flat then return nil, "values" end
  for i = 1, #flat, 2 do given[flat[i]] = flat[i + 1] end
  local out = {}
  for i = 1, #fields do
    local field = fields[i]
    local text = given[field.name]
    given[field.name] = nil
    local value = known and known[field.name] or field.default
    if text and field.words then
      if not field.words[text] then return nil, field.name end
      value = text
    elseif text then
      value = string.find(text, "^%d+$") and #text <= 16 and tonumber(text)
      if not value or value > field.most then return nil, field.name .. " is a whole number up to " .. string.format("%.0f", field.most) end
    end
    out[field.name] = value
  end
  local unknown = next(given)
  if unknown then return nil, string.sub(unknown, 1, 64) .. " is not a setting" end
  return out
end

local function text_of(value) return type(value) == "number" and string.format("%.0f", value) or value end

local function flat_values(fields, values)
  local flat = {}
  for i = 1, #fields do flat[#flat + 1], flat[#flat + 2] = fields[i].name, text_of(values[fields[i].name]) end
  return flat
end

local function packed_values(fields, values)
  local flat = flat_values(fields, values)
  for i = 1, #flat do flat[i] = #flat[i] .. ":" .. flat[i] end
  return table.concat(flat)
end

-- What the record of a lane says that was set back to its defaults, as it stands in a row.
local DEFAULTS
local function lane_defaults()
  DEFAULTS = packed_values(KINDS.lane, read_values(KINDS.lane, ""))
  return DEFAULTS
end

local function is_default(fields, values)
  for i = 1, #fields do if values[fields[i].name] ~= fields[i].default then return false end end
  return true
end

-- A stored record: revision, when it was changed, values packed.
local function read_row(row)
  local revision, at, packed = string.match(row or "", "^(%d+) (%d+) (.*)$")
  return tonumber(revision or "0"), tonumber(at or "0"), packed or ""
end

-- Room for a new record: those that say nothing but defaults are only kept for partitions that have not heard of them.
local function make_room(p, key)
  if redis.call("HLEN", key) < LIMITS.LANES_N then return true end
  local rows, defaults, oldest, found = redis.call("HGETALL", key), DEFAULTS or lane_defaults(), nil, nil
  for i = 1, #rows, 2 do
    -- By its text: to read every record would hold the server for tens of milliseconds.
    if string.sub(rows[i + 1], -#defaults - 1) == " " .. defaults and rows[i] ~= "store" then
      local revision = read_row(rows[i + 1])
      if not oldest or revision < oldest then oldest, found = revision, rows[i] end
    end
  end
  if found then redis.call("HDEL", key, found) end
  return found ~= nil
end

-- Change some values of a record. `expected_revision`: only if nobody has changed it since. Values that are there
-- already are answered as they stand, so a repeat does no harm.
define {
  name    = "ff_put_settings",
  args    = { "name:str", "changes:blob", "expected_revision:int?" },
  returns = { "settings" },   -- name, revision, changed_at_ms, values, changed
  errors  = { "invalid_input", "revision_conflict", "too_many_names" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if p.tag ~= "{w:0}" then return reply.reject("invalid_input", "settings are kept in {w:0}") end
    local fields = kind_of(a.name)
    if not fields then return reply.reject("invalid_input", "name is lane:<name> or store") end
    local key = keys.settings(p)
    local row = redis.call("HGET", key, a.name)
    local revision, changed_at, packed = read_row(row)
    local known = read_values(fields, packed)
    local values, wrong = read_values(fields, a.changes, known)
    if not values then return reply.reject("invalid_input", wrong) end
    local wanted = packed_values(fields, values)
    if row and wanted == packed then
      fence.replayed(p)
      return { "settings", a.name, revision, changed_at, flat_values(fields, values), 0 }
    end
    if a.expected_revision and a.expected_revision ~= revision then
      return reply.reject("revision_conflict", "at revision " .. revision .. ", not " .. a.expected_revision .. ": read it again")
    end
    if not row and not make_room(p, key) then
      return reply.reject("too_many_names", LIMITS.LANES_N .. " records of settings: set some back to their defaults")
    end
    revision = redis.call("HINCRBY", p.key, "settings", 1)
    redis.call("HSET", key, a.name, string.format("%.0f %.0f ", revision, p.now) .. wanted)
    return { "settings", a.name, revision, p.now, flat_values(fields, values), 1 }
  end,
}

-- Records changed after a revision, oldest change first; or the one of a name, whenever it was changed.
define {
  name    = "ff_list_settings",
  args    = { "name:str?", "after_revision:int", "limit:int" },
  returns = { "settings_page" },   -- records, revision of the store
  errors  = { "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local found, at, out = {}, {}, {}
    local flat
    if a.name then flat = { a.name, redis.call("HGET", keys.settings(p), a.name) or nil }
    else flat = redis.call("HGETALL", keys.settings(p)) end
    for i = 1, #flat - 1, 2 do
      local revision = read_row(flat[i + 1])
      if revision > a.after_revision then found[#found + 1], at[revision] = revision, i end
    end
    table.sort(found)   -- numbers alone, each of one record: a comparison of ours would cost more than all the rest
    for i = 1, math.min(#found, a.limit) do
      local name = flat[at[found[i]]]
      local fields, _, changed_at, packed = kind_of(name), read_row(flat[at[found[i]] + 1])
      out[i] = { name, found[i], changed_at, flat_values(fields, read_values(fields, packed)) }
    end
    return { "settings_page", out, tonumber(redis.call("HGET", p.key, "settings") or "0") }
  end,
}

-- What a bound of the whole store is in one partition: rounded up, so that a bound of 1 does not become none.
local function share(p, whole)
  if whole == 0 then return 0 end
  local counts = cjson.decode(redis.call("HGET", p.key, "counts") or "{}")
  return math.ceil(whole / (tonumber(counts.fp) or 1))
end

local function apply_lane(p, lane, values)
  if lane.state ~= values.state then
    events.note(p, "lane " .. lane.name .. " " .. lane.state .. " " .. values.state)
    lane.state = values.state
    lanes.note(p, "s" .. lane.no, values.state)
    if values.state == "active" or values.state == "draining" then
      for _ = 1, LIMITS.HEADS_N do wake.ring(p, lane.no, "-") end
    end
  end
  if lane.moving or values.aged_s ~= (lane.aged or 0) then queue.order(p, lane, nil, values.aged_s) end
  local bytes = share(p, values.bytes)
  local text = string.format("%.0f %.0f %.0f", values.age_ms, share(p, values.count), bytes)
  if text ~= (redis.call("HGET", p.key, "r" .. lane.no) or string.format("%.0f 0 0", LIMITS.RETENTION_AGE_MS)) then
    lanes.note(p, "r" .. lane.no, text)
    -- A counter that exists is kept up by every end of an execution; without a limit there is none.
    -- Once there is one it stays, limit or not: records say what they added, and taking that off a counter that
    -- began anew would make it fall short.
    if bytes > 0 then redis.call("HSETNX", p.key, "y" .. lane.no, 0) end
    timers.reap(p, "lane", lane.no, p.now)
  end
end

-- Copy a record to the header of this partition, unless it has it, or a newer one. `since`: the caller knows that no
-- record stands between that revision and this one.
define {
  name    = "ff_apply_settings",
  args    = { "name:str", "revision:int", "since:int", "values:blob" },
  returns = { "settings_applied" },   -- changed, revision the partition has reached
  errors  = { "invalid_input", "too_many_names" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if string.sub(p.tag, 1, 4) ~= "{fp:" then return reply.reject("invalid_input", "partition") end
    local fields, name = kind_of(a.name)
    if not fields then return reply.reject("invalid_input", "name is lane:<name> or store") end
    local values, wrong = read_values(fields, a.values)
    if not values then return reply.reject("invalid_input", wrong) end
    local reached, changed = tonumber(redis.call("HGET", p.key, "settings") or "0"), 0
    if a.revision > reached then
      if not name then
        if a.revision > tonumber(redis.call("HGET", p.key, "gate_revision") or "0") then
          lanes.note(p, "gate", values.gate_pct .. " " .. text_of(values.gate_bytes))
          lanes.note(p, "gate_revision", a.revision)
          changed = 1
        end
      else
        local lane = lanes.named(p, name, not is_default(fields, values))
        if lane and a.revision > tonumber(redis.call("HGET", p.key, "e" .. lane.no) or "0") then
          apply_lane(p, lane, values)
          lanes.note(p, "e" .. lane.no, a.revision)
          changed = 1
        elseif not lane and not is_default(fields, values) then
          return reply.reject("too_many_names", LIMITS.LANES_N .. " lanes are in use")
        end
      end
      if a.since <= reached then
        reached = a.revision
        lanes.note(p, "settings", reached)
      end
    end
    return { "settings_applied", changed, reached }
  end,
}
