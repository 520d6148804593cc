-- shared/define.lua -- how a capability declares a function; the only file that sees a KEYS or ARGV position.
--
--   define {
--     name    = "ff_renew_lease",
--     args    = { "execution_id:id", "fence:fence", "note:str?", "items:rows(execution_id:id,fence:fence)" },
--     returns = { "renewed" }, errors = { "stale_lease" }, flags = { "allow-oom" }, scope = "one",
--     run     = function(p, a) ... end,
--   }
--
-- scope: "one" partition (default), "many" (run gets a list; standalone servers only), "none".
-- A body reads, refuses, writes, answers, in this order: Lua does not roll back. Expected refusals are
-- data, `reply.reject(code, detail)`; a malformed call is an error reply, so that INFO errorstats counts
-- it as FFBUG. What a body changes in indexes, timers, events and bells is collected in p and written
-- once, by partition.close, after the body has answered.

local signatures = {}
local partition = {}   -- filled by shared/partition.lua: open, close
local reply = {}

function reply.reject(code, detail) return { "error", code, detail and tostring(detail) or "" } end

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"

-- One reader per kind: raw argument and partition in, value out; nil means unreadable.
local read = {}
function read.str(raw) return raw end
function read.blob(raw) return raw end
function read.bool(raw) if raw == "1" then return true elseif raw == "0" then return false end end
function read.int(raw)
  if string.match(raw, "^%-?%d+$") and #raw <= 17 then
    local n = tonumber(raw)
    if n <= 9007199254740991 and n >= -9007199254740991 then return n end
  end
end
function read.json(raw)
  local ok, value = pcall(cjson.decode, raw)
  if ok then return value end
end
-- An id must carry the tag of the partition the call was routed to; the rest of the library sees only
-- its uuid part, so no user text ever reaches a key.
function read.id(raw, p)
  local n = p.id_prefix_n
  if #raw == n + 36 and string.find(raw, p.id_prefix, 1, true) == 1 then
    local uuid = string.sub(raw, n + 1)
    if string.find(uuid, UUID) then return uuid end
  end
end
-- "lease_id lease_epoch attempt_id", compared as one string with what the record says.
function read.fence(raw) if string.find(raw, " ", 1, true) then return raw end end

local function compile_field(declared)
  local name, kind, mark = string.match(declared, "^([%w_]+):(%a+)(%??)$")
  return { name = name, read = read[kind], optional = mark == "?", bytes = kind == "str" or kind == "blob" }
end

-- FUNCTION LOAD runs with the registration API and nothing else (no ipairs, no string), so a signature
-- is compiled on its first call and kept.
local function compile(spec)
  local plan = { fields = {} }
  for i = 1, #spec.args do
    local name, inner = string.match(spec.args[i], "^([%w_]+):rows%((.*)%)$")
    if name then
      plan.rows, plan.columns = name, {}
      for column in string.gmatch(inner, "[^,]+") do plan.columns[#plan.columns + 1] = compile_field(column) end
    else
      plan.fields[i] = compile_field(spec.args[i])
    end
  end
  return plan
end

-- The values of a call by name, or nil and what is wrong. Optional arguments carry a presence mark: "" is absent, "="
-- and the value is present.
local function parse(plan, argv, p)
  local a, fields = {}, plan.fields
  local n = #fields
  for i = 1, n do
    local field, value = fields[i], argv[i]
    if not value then return nil, field.name .. " is missing" end
    if field.optional then
      if value == "" then value = nil
      elseif string.byte(value) ~= 61 then return nil, field.name .. " is not readable"
      else value = string.sub(value, 2) end
    end
    if value then
      if not field.bytes then
        value = field.read(value, p)
        if value == nil then return nil, field.name .. " is not readable" end
      end
      a[field.name] = value
    end
  end
  if plan.rows then
    local columns, rows, at = plan.columns, {}, n + 2
    local count, width = read.int(argv[n + 1] or ""), #columns
    if not count or #argv ~= n + 1 + count * width then return nil, plan.rows .. " has the wrong number of values" end
    if count > LIMITS.ROWS_N then return nil, plan.rows .. " has more than " .. LIMITS.ROWS_N .. " rows" end
    for r = 1, count do
      local row = {}
      for c = 1, width do
        local field, value = columns[c], argv[at]
        if field.optional then value = value ~= "" and string.sub(value, 2) or nil end
        if value then
          if not field.bytes then
            value = field.read(value, p)
            -- One bad row must not fail its neighbours: it is marked, and the body refuses that row alone.
            if value == nil then row.bad = field.name end
          end
          row[field.name] = value
        end
        at = at + 1
      end
      rows[r] = row
    end
    a[plan.rows] = rows
  elseif #argv ~= n then
    return nil, "wrong number of arguments"
  end
  return a
end

local function bug(name, what) return redis.error_reply("FFBUG " .. name .. ": " .. what) end

local function define(spec)
  local scope, plan = spec.scope or "one", nil
  signatures[spec.name] = spec
  local reads_only = false
  for i = 1, #spec.flags do if spec.flags[i] == "no-writes" then reads_only = true end end

  redis.register_function {
    function_name = spec.name,
    flags = spec.flags,
    callback = function(keys, argv)
      plan = plan or compile(spec)
      if scope == "none" then
        local a, wrong = parse(plan, argv)
        if not a then return bug(spec.name, wrong) end
        return spec.run(a)
      end
      -- The key pair of each partition: its header, and a key that never exists (see docs/decisions).
      if #keys < 2 or #keys % 2 == 1 or (scope == "one" and #keys ~= 2) then return bug(spec.name, "wrong number of keys") end
      local ps = {}
      for i = 1, #keys, 2 do
        local p = partition.open(keys[i], keys[i + 1], reads_only)
        if not p then return bug(spec.name, "the keys are not a partition pair") end
        if not p.ready and not spec.unready then return reply.reject("not_initialised", p.tag) end
        if p.foreign then return bug(spec.name, "partition " .. p.tag .. " was written by a newer release: upgrade the library") end
        ps[#ps + 1] = p
      end
      local a, wrong = parse(plan, argv, ps[1])
      if not a then return bug(spec.name, wrong) end
      local answer = spec.run(scope == "one" and ps[1] or ps, a)
      if not reads_only then for i = 1, #ps do partition.close(ps[i]) end end
      return answer
    end,
  }
end
