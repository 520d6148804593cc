-- settings.lua -- what operators set: revisioned records, of each lane and of the whole store.
--
-- The records stand in {w:0}. Every change takes the next revision of the store, so a partition that has applied
-- everything up to a revision says so in one number (`settings` in its header), and the ticker brings what it lacks.
-- Functions read a copy in the header of their own partition.
--
--   lane:<name>  state     active: everything. paused: takes work, starts none. draining: starts, takes none. disabled: neither
--                aged_s    seconds a point of priority is worth (shared/order.lua); 0: strict
--                age_ms, count, bytes   how much of what has ended is kept, in the whole store; 0: no bound of that kind
--                max_count, max_bytes   submits are refused while so many jobs stand in line in the whole store (ready,
--                          delayed, blocked), or so many bytes of payload of jobs that have not ended; 0: no bound of that kind
--                quota     the quota every job of the lane takes a place of; empty: none
--   weights:<name>   of a lane: fairness key -> weight, of those that do not weigh 1
--   store        gate_pct, gate_bytes   submits are refused when the server uses so much of its maxmemory, or so many bytes

local STATES = { active = true, paused = true, draining = true, disabled = true }
local WHOLE = 9007199254740991
local KINDS = {
  lane = {
    { name = "aged_s", default = 0, most = LIMITS.AGED_MAX_S },
    { name = "age_ms", default = LIMITS.RETENTION_AGE_MS, most = LIMITS.SPAN_MAX_MS },
    { name = "bytes", default = 0, most = WHOLE },
    { name = "count", default = 0, most = WHOLE },
    { name = "max_bytes", default = 0, most = WHOLE },
    { name = "max_count", default = 0, most = WHOLE },
    { name = "quota", default = "", pattern = "^{q:%d+}:%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$" },
    { name = "state", default = "active", words = STATES },
  },
  weights = { free = true },
  store = {
    { name = "gate_bytes", default = 0, most = WHOLE },
    { name = "gate_pct", default = LIMITS.GATE_PCT, most = 100 },
  },
}

-- The fields of a record's kind and, of a lane, its name; nil for a name nothing has.
local function kind_of(name)
  local kind, lane = string.match(name, "^(%l+):(.*)$")
  if kind == "lane" or kind == "weights" then return names.is_lane(lane) and KINDS[kind] or nil, lane end
  if name == "store" then return KINDS.store end
end

-- A weight as it is kept; nil for what is none.
local function read_weight(text)
  local value = #text <= 10 and (string.find(text, "^%d+$") or string.find(text, "^%d+%.%d+$")) and tonumber(text)
  if not value or value > LIMITS.WEIGHT_MAX or value < 1 / LIMITS.WEIGHT_MAX then return nil end
  return (string.gsub(string.gsub(string.format("%.4f", value), "0+$", ""), "%.$", ""))
end

-- The values of a record whose fields have any name: a weight of 1, or none, is left out.
local function read_free(flat, known)
  local out, n = {}, 0
  for name, value in pairs(known or {}) do out[name] = value end -- order-free
  for i = 1, #flat, 2 do
    local name, text = flat[i], flat[i + 1]
    if name == "" or #name > LIMITS.KEY_BYTES then return nil, "a fairness key is text of 1 to " .. LIMITS.KEY_BYTES .. " bytes" end
    local weight = text == "" and "1" or read_weight(text)
    if not weight then return nil, "a weight is a number from " .. 1 / LIMITS.WEIGHT_MAX .. " to " .. LIMITS.WEIGHT_MAX end
    out[name] = weight ~= "1" and weight or nil
  end
  for _ in pairs(out) do n = n + 1 end -- order-free
  if n > LIMITS.WEIGHTS_N then return nil, "at most " .. LIMITS.WEIGHTS_N .. " keys of a lane have weights" end
  return out
end

-- Packed values as a table, every field there; nil and what is wrong with them.
local function read_values(fields, packed, known)
  local flat, given = names.unpack_pairs(packed, fields.free and 2 * LIMITS.WEIGHTS_N), {}
  if not flat then return nil, "values" end
  if fields.free then return read_free(flat, known) end
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
    elseif text and field.pattern then
      if text ~= "" and not string.find(text, field.pattern) then return nil, field.name end
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
  if fields.free then
    local keys_of = {}
    for name in pairs(values) do keys_of[#keys_of + 1] = name end -- order-free
    table.sort(keys_of)
    for i = 1, #keys_of do flat[#flat + 1], flat[#flat + 2] = keys_of[i], values[keys_of[i]] end
    return flat
  end
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
  if fields.free then return next(values) == nil end
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
    local weighs = string.sub(rows[i], 1, 8) == "weights:"
    if rows[i] ~= "store" and string.sub(rows[i + 1], weighs and -1 or -#defaults - 1) == (weighs and " " or " " .. defaults) then
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
    if not fields then return reply.reject("invalid_input", "name is lane:<name>, weights:<name> or store") end
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

-- Records changed after a revision, oldest change first; or the one of a name, whenever it was changed. A page ends
-- before it becomes too large for one answer: there may be more when it has fewer than `limit`.
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
    local bytes = 0
    for i = 1, math.min(#found, a.limit) do
      local name = flat[at[found[i]]]
      bytes = bytes + #flat[at[found[i]] + 1]
      if i > 1 and bytes > LIMITS.BATCH_BYTES then break end
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

-- What the lane takes, and which quota its jobs have to pass.
local function apply_limits(p, lane, values, was)
  local count, bytes = share(p, values.max_count), share(p, values.max_bytes)
  local most = lane.most or { count = 0, bytes = 0 }
  if was ~= values.state or most.count ~= count or most.bytes ~= bytes then
    lanes.note(p, "s" .. lane.no, lanes.state_text(values.state, count, bytes))
    lane.most, lane.room = (count > 0 or bytes > 0) and { count = count, bytes = bytes } or nil, nil
  end
  -- What the quota before has halted may go on.
  if lanes.set_quota(p, lane, values.quota) then for _ = 1, LIMITS.HEADS_N do wake.ring(p, lane.no, "-") end end
end

local function apply_lane(p, lane, values)
  local was = lane.state
  if was ~= values.state then
    events.note(p, "lane " .. lane.name .. " " .. was .. " " .. values.state)
    lane.state = values.state
    if values.state == "active" or values.state == "draining" then
      for _ = 1, LIMITS.HEADS_N do wake.ring(p, lane.no, "-") end
    end
  end
  apply_limits(p, lane, values, was)
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
    if not fields then return reply.reject("invalid_input", "name is lane:<name>, weights:<name> or store") end
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
        local word = lane and (fields.free and "h" or "e") .. lane.no
        if lane and a.revision > tonumber(redis.call("HGET", p.key, word) or "0") then
          if fields.free then lanes.set_weights(p, lane, flat_values(fields, values))
          else apply_lane(p, lane, values) end
          lanes.note(p, word, a.revision)
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
