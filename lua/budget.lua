-- budget.lua -- budgets: make, change and read them, reserve of them, report what was spent.

local MODES = { record = true, refuse = true }
local ON_HARD = { hold = true, fail = true, suspend = true, cancel = true }
local ON_SOFT = { warn = true, none = true }

local function refuse(p, code, detail)
  budgets.close(p)   -- a period that is over is over, whatever was asked
  return reply.reject(code, detail)
end

local function is_execution(text) return string.find(text, "^{%l+:%d+}:%x+%-%x+%-%x+%-%x+%-%x+$") ~= nil and #text <= 60 end
local function is_text(text, most) return #text <= (most or LIMITS.NAME_BYTES) and not string.find(text, "[%c\128-\255]") end
local function is_key(key) return key ~= "" and #key <= LIMITS.KEY_BYTES end

-- Parallel lists of dimensions and numbers: names in order and the numbers by name; nil and what is wrong.
local function read_columns(dims, columns)
  if type(dims) ~= "table" or #dims > LIMITS.DIMENSIONS_N then return nil, "dimensions" end
  local names_of, out = {}, {}
  for c = 1, #columns do
    if type(columns[c]) ~= "table" or #columns[c] ~= #dims then return nil, "as many numbers as dimensions" end
    out[c] = {}
  end
  for i = 1, #dims do
    local name = dims[i]
    if type(name) ~= "string" or not amounts.is_dimension(name) or (out[1] and out[1][name]) then return nil, "dimension " .. string.sub(tostring(name), 1, 80) end
    names_of[i] = name
    for c = 1, #columns do
      local value = columns[c][i]
      local n = type(value) == "number" and value >= 0 and value < amounts.MOST and amounts.add(value, 0)
      if not n then return nil, "an amount of " .. name end
      out[c][name] = n
    end
  end
  table.sort(names_of)
  return names_of, out
end

define {
  name    = "ff_create_budget",
  args    = { "budget_id:id", "name:str", "namespace:str", "scope_type:str", "scope_id:str", "enforcement_mode:str", "on_hard_limit:str",
    "on_soft_limit:str", "reset_interval_ms:int", "dimensions:json", "hard_limits:json", "soft_limits:json" },
  returns = { "created", "already_satisfied" },
  errors  = { "invalid_input", "invalid_budget_scope", "store_full" },
  flags   = {},
  run = function(p, a)
    local id = p.id_prefix .. a.budget_id
    if budgets.look(p, a.budget_id) then
      budgets.repeated(p)
      return { "already_satisfied", id }
    end
    if not string.find(p.tag, "^{b:") then return reply.reject("invalid_input", "budgets are kept in {b:M}") end
    if not names.is_name(a.scope_type) or not is_text(a.scope_id) then return reply.reject("invalid_budget_scope", "scope_type is a name, scope_id text of at most 128 bytes") end
    if not MODES[a.enforcement_mode] then return reply.reject("invalid_input", "enforcement_mode is record or refuse") end
    if not ON_HARD[a.on_hard_limit] then return reply.reject("invalid_input", "on_hard_limit is hold, fail, suspend or cancel") end
    if not ON_SOFT[a.on_soft_limit] then return reply.reject("invalid_input", "on_soft_limit is warn or none") end
    if a.name ~= "" and not names.is_name(a.name) or not names.is_name(a.namespace) then return reply.reject("invalid_input", "name") end
    if a.reset_interval_ms < 0 or a.reset_interval_ms > LIMITS.SPAN_MAX_MS then return reply.reject("invalid_input", "reset_interval_ms") end
    local dims, columns = read_columns(a.dimensions, { a.hard_limits, a.soft_limits })
    if not dims then return reply.reject("invalid_input", columns) end
    local full = partition.full(p)
    if full then return full end
    budgets.create(p, a.budget_id, { every = a.reset_interval_ms, texts = { "name", a.name, "ns", a.namespace, "scope", a.scope_type,
      "scope_id", a.scope_id, "mode", a.enforcement_mode, "on_hard", a.on_hard_limit, "on_soft", a.on_soft_limit } }, columns[1], columns[2], dims)
    return { "created", id }
  end,
}

-- ---- reading ---------------------------------------------------------------------------------------------

local function flat(dims, by_name)
  local out = {}
  for i = 1, #dims do
    if by_name[dims[i]] then
      out[#out + 1] = dims[i]
      out[#out + 1] = amounts.text(by_name[dims[i]])
    end
  end
  return out
end

local function status(p, b)
  local whole = budgets.whole
  return { "budget", p.id_prefix .. b.id, b.scope, b.scope_id, b.mode, flat(b.dims, b.used), flat(b.dims, b.hard), flat(b.dims, b.soft),
    b.breaches, b.soft_breaches, b.last_at or "", b.last_dim or "", b.next > 0 and whole(b.next) or "", whole(b.created),
    b.name, b.ns, b.on_hard, b.on_soft, b.every, flat(b.dims, b.reserved), redis.call("HLEN", keys.reserved(p, b.id)), b.period,
    redis.call("HLEN", keys.waiting(p, b.id)) }
end

define {
  name    = "ff_read_budget",
  args    = { "budget_id:id" },
  returns = { "budget" },
  errors  = { "budget_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local b = budgets.look(p, a.budget_id)
    if not b then return reply.reject("budget_not_found") end
    return status(p, b)
  end,
}

define {
  name    = "ff_list_budgets",
  args    = { "cursor:str?", "limit:int" },
  returns = { "budgets" },
  errors  = { "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    local refusal, ids, more = names.page(p, keys.budgets(p), a.cursor, a.limit)
    if refusal then return refusal end
    local rows = {}
    for i = 1, #ids do
      local b = budgets.look(p, ids[i])
      if b then rows[#rows + 1] = status(p, b) end
    end
    return { "budgets", rows, more }
  end,
}

-- Who spent most of what is limited, in this period.
define {
  name    = "ff_top_spenders",
  args    = { "budget_id:id", "limit:int" },
  returns = { "spenders" },
  errors  = { "invalid_input", "budget_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local b = budgets.look(p, a.budget_id)
    if not b then return reply.reject("budget_not_found") end
    if b.fresh then return { "spenders", {}, {} } end
    local rows, key = {}, keys.spent(p, b.id)
    local ids = redis.call("ZRANGE", keys.spenders(p, b.id), 0, a.limit - 1, "REV")
    for i = 1, #ids do
      local dims, spent = amounts.parse(redis.call("HGET", key, ids[i]) or "")
      rows[i] = { ids[i], flat(dims, spent) }
    end
    local dims, rest = amounts.parse(redis.call("HGET", key, "-") or "")
    return { "spenders", rows, flat(dims, rest) }
  end,
}

-- ---- changing --------------------------------------------------------------------------------------------

local WORDS = { enforcement_mode = { "mode", MODES }, on_hard_limit = { "on_hard", ON_HARD }, on_soft_limit = { "on_soft", ON_SOFT } }

-- Packed pairs: hard_limits and soft_limits (amounts; all that hold from now on), reset_interval_ms, and the words of a
-- create. What is not named stays. What is so already changes nothing, so a repeat does no harm.
local function read_changes(packed)
  local pairs_of, out = names.unpack_pairs(packed), {}
  if not pairs_of then return nil, "changes" end
  for i = 1, #pairs_of, 2 do
    local name, value = pairs_of[i], pairs_of[i + 1]
    if name == "hard_limits" or name == "soft_limits" then
      local dims, by_name = amounts.parse(value)
      if not dims then return nil, name .. " are amounts, as in tokens=500" end
      out[name] = { dims, by_name }
    elseif name == "reset_interval_ms" then
      local every = string.find(value, "^%d+$") and #value <= 15 and tonumber(value)
      if not every or every > LIMITS.SPAN_MAX_MS then return nil, name end
      out[name] = every
    elseif WORDS[name] and WORDS[name][2][value] then out[name] = value
    else return nil, string.sub(name, 1, 64) end
  end
  return out
end

define {
  name    = "ff_change_budget",
  args    = { "budget_id:id", "changes:blob" },
  returns = { "changed" },
  errors  = { "invalid_input", "budget_not_found" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local changes, wrong = read_changes(a.changes)
    if not changes then return reply.reject("invalid_input", wrong) end
    local b = budgets.load(p, a.budget_id)
    if not b then return reply.reject("budget_not_found") end
    local hard, soft, more = changes.hard_limits, changes.soft_limits, 0
    for _, given in ipairs({ hard or { {} }, soft or { {} } }) do
      for i = 1, #given[1] do if not b.used[given[1][i]] then more = more + 1 end end
    end
    if #b.dims + more > LIMITS.DIMENSIONS_N then return refuse(p, "invalid_input", "more than " .. LIMITS.DIMENSIONS_N .. " dimensions") end
    for which, given in pairs({ hard = hard, soft = soft }) do -- order-free
      for i = 1, #given[1] do budgets.track(b, given[1][i]) end
      budgets.limit(p, b, which, given[2])
    end
    if changes.reset_interval_ms and changes.reset_interval_ms ~= b.every then budgets.rhythm(p, b, changes.reset_interval_ms) end
    for name, word in pairs(WORDS) do -- order-free
      if changes[name] and changes[name] ~= b[word[1]] then budgets.word(b, word[1], changes[name]) end
    end
    if not b.writes then budgets.repeated(p) end
    budgets.close(p)
    return { "changed", status(p, b) }
  end,
}

-- More of what is limited, once per key.
define {
  name    = "ff_raise_budget",
  args    = { "budget_id:id", "amounts:str", "key:str" },
  returns = { "raised" },
  errors  = { "invalid_input", "budget_not_found" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local dims, by_name = amounts.parse(a.amounts)
    if not dims or #dims == 0 then return reply.reject("invalid_input", "amounts") end
    if not is_key(a.key) then return reply.reject("invalid_input", "key") end
    local b = budgets.load(p, a.budget_id)
    if not b then return reply.reject("budget_not_found") end
    for i = 1, #dims do
      if (b.hard[dims[i]] or 0) == 0 then return refuse(p, "invalid_input", "the budget has no hard limit for " .. dims[i]) end
    end
    local replayed = budgets.raise(p, b, a.key, dims, by_name)
    budgets.close(p)
    return { "raised", flat(b.dims, b.hard), replayed and "1" or "0" }
  end,
}

-- A new period begins now; the instants of those to come stay as they are.
define {
  name    = "ff_reset_budget",
  args    = { "budget_id:id" },
  returns = { "reset" },
  errors  = { "budget_not_found" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local b = budgets.load(p, a.budget_id)
    if not b then return reply.reject("budget_not_found") end
    budgets.reset(p, b)
    budgets.close(p)
    return { "reset", b.next }
  end,
}

-- What runs goes on; what is to be admitted by it asks again, finds nothing and is held until it is there again.
define {
  name    = "ff_delete_budget",
  args    = { "budget_id:id" },
  returns = { "deleted" },
  errors  = { "budget_not_found" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local b = budgets.load(p, a.budget_id)
    if not b then return reply.reject("budget_not_found") end
    budgets.delete(p, b)
    return { "deleted" }
  end,
}

-- ---- spending --------------------------------------------------------------------------------------------

-- A report of anybody's, charged to nobody. Dimensions the budget does not have yet are counted from now on.
define {
  name    = "ff_report_usage_and_check",
  args    = { "at:id", "dimensions:json", "deltas:json", "dedup_key:str?" },
  returns = { "ok", "soft_breach", "hard_breach", "already_applied" },
  errors  = { "invalid_input", "budget_not_found" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local dims, columns = read_columns(a.dimensions, { a.deltas })
    if not dims then return reply.reject("invalid_input", columns) end
    if a.dedup_key and not is_key(a.dedup_key) then return reply.reject("invalid_input", "dedup_key") end
    local b = budgets.load(p, a.at)
    if not b then return reply.reject("budget_not_found") end
    local more = 0
    for i = 1, #dims do if not b.used[dims[i]] then more = more + 1 end end
    if #b.dims + more > LIMITS.DIMENSIONS_N then return refuse(p, "invalid_input", "more than " .. LIMITS.DIMENSIONS_N .. " dimensions") end
    for i = 1, #dims do budgets.track(b, dims[i]) end
    local row = budgets.spend(p, b, "-", 0, a.dedup_key, dims, columns[1])
    budgets.close(p)
    if row.again then return { "already_applied" } end
    if row[1] == "hard" then return { "hard_breach", row[2], row[3], row[4], row[6] and "1" or "0" } end
    if row[1] == "soft" then return { "soft_breach", row[2], row[3], row[4] } end
    return { "ok" }
  end,
}

-- What executions spent; each row by itself. A key is remembered for its execution, so the same one again changes
-- nothing. `amounts` may be "-": how the budget stands.
define {
  name    = "ff_spend_many",
  args    = { "items:rows(budget_id:id,execution_id:str,epoch:int,key:str,amounts:str)" },
  returns = { "spent_many" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local out = {}
    for i = 1, #a.items do
      local item = a.items[i]
      local dims, by_name = amounts.parse(item.amounts)
      local b = not item.bad and budgets.load(p, item.budget_id)
      -- What is counted has a key: the call may be sent again after a lost answer.
      if item.bad or not dims or not is_execution(item.execution_id) or #item.key > LIMITS.KEY_BYTES or item.key == "" and #dims > 0 then
        out[i] = { "error", "invalid_input", "0", "0", item.bad or "" }
      elseif not b then out[i] = { "error", "budget_not_found", "0", "0", "" }
      else
        local row = budgets.spend(p, b, item.execution_id, item.epoch, item.key ~= "" and item.key or nil, dims, by_name)
        out[i] = { row[1], row[2], row[3], row[4], row[5] }
      end
    end
    budgets.close(p)
    return { "spent_many", out }
  end,
}

-- ---- reserving -------------------------------------------------------------------------------------------

define {
  name    = "ff_reserve_many",
  args    = { "items:rows(budget_id:id,execution_id:str,epoch:int,until_ms:int,partition:str,adm:str,amounts:str)" },
  returns = { "reserved_many" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local out = {}
    for i = 1, #a.items do
      local item = a.items[i]
      local dims, by_name = amounts.parse(item.amounts)
      local b = not item.bad and budgets.load(p, item.budget_id)
      if item.bad or not dims or not is_execution(item.execution_id) or item.epoch < 0
        or item.partition ~= "" and not string.find(item.partition, "^{fp:%d+}$") or not string.find(item.adm, "^[%w:%-]*$") or #item.adm > 64 then
        out[i] = { "error", "invalid_input", "0", "0", 0, 0 }
      elseif not b then out[i] = { "not_found", "", "0", "0", 0, 0 }
      else out[i] = budgets.reserve(p, b, item, dims, by_name) end
    end
    budgets.close(p)
    return { "reserved_many", out }
  end,
}

-- ---- delivered and due -----------------------------------------------------------------------------------

inbox.on("settle b", function(p, body)
  local id, execution, epoch = string.match(body, "^b (%S+) %S+ (%S+) (%d+) %d$")
  local b = id and budgets.load(p, id)
  if b then budgets.settle(p, b, execution, tonumber(epoch)) end
end)

inbox.on("spend", function(p, body)
  local id, execution, epoch, key, text = string.match(body, "^(%S+) (%S+) (%d+) (%S+) (%S+)$")
  local dims, by_name = amounts.parse(text or "!")
  local b = dims and is_execution(execution) and budgets.load(p, id)
  if b then budgets.spend(p, b, execution, tonumber(epoch), key, dims, by_name) end
end)

inbox.on("verified b", function(p, body)
  local id, execution, epoch, held = string.match(body, "^b (%S+) %S+ (%S+) (%d+) (%d)$")
  local b = id and budgets.load(p, id)
  if b then budgets.verified(p, b, execution, tonumber(epoch), held == "1") end
end)

inbox.after(function(p) budgets.close(p, true) end)

due.on("reset", function(p, id)
  local b = budgets.load(p, id)
  -- Another timer of this call may have begun the period: the next one's was set before this one was taken out.
  if b and b.next > 0 then timers.set(p, "reset", id, b.next) end
  budgets.close(p, true)
end)

due.on("res", function(p, member)
  local id, execution = string.match(member, "^(%S+) (%S+)$")
  local b = id and budgets.load(p, id)
  if b then budgets.overdue(p, b, execution) end
  budgets.close(p, true)
end)

due.on("wake", function(p, id)
  local b = budgets.load(p, id)
  if b then b.freed = true
  elseif waiting.dismiss(p, id, p.now) then timers.set(p, "wake", id, p.now) end
  budgets.close(p, true)
end)

reap.on("reports", function(p, id, most) return budgets.forget_reports(p, id, most) end)
