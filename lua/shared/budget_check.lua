-- shared/budget_check.lua -- what must be true of budgets, of who waits for one, and of mail between partitions.

local budget_check = {}
do
local SUMMED_N = 1000   -- of longer ones the sums are not made
local NUMBERS = { "every", "created", "next", "period", "breaches", "soft_breaches", "gen" }
local FIELD = { h = true, s = true, u = true, r = true }

-- Amounts of a hash of texts, added up by dimension; nil where there are too many, or one cannot be read.
local function sums(key, amounts_of)
  if redis.call("HLEN", key) > SUMMED_N then return nil end
  local flat, total = redis.call("HGETALL", key), {}
  for i = 2, #flat, 2 do
    local dims, by_name = amounts.parse(amounts_of(flat[i]) or "!")
    if not dims then return nil end
    for d = 1, #dims do total[dims[d]] = amounts.add(total[dims[d]] or 0, by_name[dims[d]]) end
  end
  return total
end

local function left_of(text) return string.match(text, "^%d+ %d+ (%S+)$") end
local function itself(text) return text end

-- I15: used is what was reported, reserved is what is set apart; a reset has its timer.
function budget_check.budget(c, key, id)
  local p = c.p
  local full, object = p.id_prefix .. id, check.object(p, key)
  local flat = redis.call("HGETALL", key)
  local field_of = {}
  for i = 1, #flat, 2 do
    field_of[flat[i]] = flat[i + 1]
    if string.byte(flat[i], 2) == 58 and not (FIELD[string.sub(flat[i], 1, 1)] and amounts.number(flat[i + 1])) then
      check.say(c, "I15", full, "its " .. flat[i] .. " is no amount: " .. string.sub(flat[i + 1], 1, 40), "", object)
    end
  end
  for i = 1, #NUMBERS do
    if not string.find(field_of[NUMBERS[i]] or "", "^%d+$") then
      return check.say(c, "I15", full, "its " .. NUMBERS[i] .. " is no number: " .. tostring(field_of[NUMBERS[i]]), "", object)
    end
  end
  if not string.find(p.tag, "^{b:") then check.say(c, "I19", full, "a budget in partition " .. p.tag .. ", which holds none", "", object) end
  if not redis.call("ZSCORE", keys.budgets(p), id) then
    check.say(c, "I18", full, "is not among the budgets", "put it among them", object)
  end
  local due_at, next_at = tonumber(redis.call("ZSCORE", keys.timers(p), "reset:" .. id) or "0"), tonumber(field_of.next)
  if due_at ~= next_at then check.say(c, "I5", full, string.format("is reset at %.0f and its timer is %.0f", next_at, due_at), "set its timers", object) end
  local spent, set_apart = sums(keys.spent(p, id), itself), sums(keys.reserved(p, id), left_of)
  for i = 1, #flat, 2 do
    local prefix, name = string.match(flat[i], "^([ur]):(.*)$")
    local there = prefix == "u" and spent or prefix == "r" and set_apart
    local counted = there and amounts.number(flat[i + 1])
    if counted and counted < amounts.MOST and math.abs(counted - (there[name] or 0)) > 0.0000005 then
      check.say(c, "I15", full, "counts " .. flat[i + 1] .. " " .. name .. (prefix == "u" and " used, reported are "
        or " reserved, set apart are ") .. amounts.text(there[name] or 0), prefix == "u" and "" or "count again", object)
    end
  end
  for name in pairs(set_apart or {}) do -- order-free
    if not field_of["r:" .. name] then check.say(c, "I15", full, "counts no " .. name .. " reserved and some is set apart", "count again", object) end
  end
end

-- Put right what can be: what is reserved follows from reservations. What was used is known by nothing else.
function budget_check.mend(p, c, id)
  local b, done = budgets.load(p, id), nil
  for i = 1, #c.rows do
    local remedy = c.rows[i][4]
    if remedy == "put it among them" then
      redis.call("ZADD", keys.budgets(p), 0, id)
      done = true
    elseif remedy == "set its timers" then
      if b.next > 0 then timers.set(p, "reset", id, b.next) else timers.clear(p, "reset", id) end
      done = true
    elseif remedy == "count again" then
      local there = sums(keys.reserved(p, id), left_of)
      for d = 1, #b.dims do budgets.set(b, "r:" .. b.dims[d], amounts.text(there[b.dims[d]] or 0)) end
      done = true
    elseif remedy == "" and done == nil then done = false end
  end
  budgets.close(p)
  return done
end

-- Keys beside a budget: it is there.
function budget_check.beside(c, key, id)
  if redis.call("EXISTS", keys.budget(c.p, id)) == 0 then
    check.say(c, "I18", c.p.id_prefix .. id, check.object(c.p, key) .. " is left over: its budget is gone", "delete the key", check.object(c.p, key))
  end
end

-- The same of what quotas have too.
function budget_check.waited_for(c, key, id)
  if redis.call("EXISTS", keys.budget(c.p, id), keys.quota(c.p, id)) == 0 and not redis.call("ZSCORE", keys.timers(c.p), "wake:" .. id) then
    check.say(c, "I18", c.p.id_prefix .. id, check.object(c.p, key) .. " is left over: nobody can wait for it", "delete the key", check.object(c.p, key))
  elseif not check.is_armed(c, "waiting", id) then
    check.say(c, "I18", c.p.tag, "those who wait for " .. id .. " are kept and nothing will ever look at them again", "look at it",
      check.object(c.p, keys.reap(c.p), "waiting:" .. id))
  end
end

function budget_check.waits(c, key, name, text)
  if not string.find(name, "^{%l+:%d+} [%w:%-]+$") or not waiting.read(text) then
    check.say(c, "I15", c.p.id_prefix .. string.sub(key, -36), "who waits cannot be read: " .. string.sub(name, 1, 80), "drop the member", check.object(c.p, key, name))
  end
end

function budget_check.listed(c, key, id)
  if redis.call("EXISTS", keys.budget(c.p, id)) == 0 then
    check.say(c, "I18", c.p.id_prefix .. id, "is listed and there is no such budget", "drop the member", check.object(c.p, key, id))
  end
end

-- A reservation is looked at when its lease should be over, or it would be kept for ever.
function budget_check.reserved(c, key, execution, text)
  local p, id = c.p, string.sub(key, -36)
  if not left_of(text) or not amounts.parse(left_of(text)) then
    return check.say(c, "I15", p.id_prefix .. id, "its reservation for " .. string.sub(execution, 1, 60) .. " cannot be read", "", check.object(p, key, execution))
  end
  if not redis.call("ZSCORE", keys.timers(p), "res:" .. id .. " " .. execution) then
    check.say(c, "I15", p.id_prefix .. id, "its reservation for " .. execution .. " is never looked at", "set its timer", check.object(p, key, execution))
  end
end

function budget_check.reported(c, key)
  local id = string.sub(key, -36)
  budget_check.beside(c, key, id)
  if not check.is_armed(c, "reports", id) then
    check.say(c, "I18", c.p.tag, "keys of reports to " .. id .. " are kept and nothing will ever look at them again", "look at it",
      check.object(c.p, keys.reap(c.p), "reports:" .. id))
  end
end

-- Whoever is ranked has spent something. `spent` knows "-" besides, which nobody is.
function budget_check.ranked(c, key, execution)
  if redis.call("HEXISTS", keys.spent(c.p, string.sub(key, -36)), execution) == 0 then
    check.say(c, "I15", c.p.id_prefix .. string.sub(key, -36), execution .. " is ranked and spent nothing", "drop the member", check.object(c.p, key, execution))
  end
end

function budget_check.spent(c, key, execution, text)
  local id = string.sub(key, -36)
  if not amounts.parse(text) then
    check.say(c, "I15", c.p.id_prefix .. id, "what " .. string.sub(execution, 1, 60) .. " spent cannot be read", "", check.object(c.p, key, execution))
  elseif execution ~= "-" and not redis.call("ZSCORE", keys.spenders(c.p, id), execution) then
    check.say(c, "I15", c.p.id_prefix .. id, execution .. " spent and is not ranked", "", check.object(c.p, key, execution))
  end
end

-- Whether it was one of ours.
function budget_check.timer(c, kind, id, object)
  local p = c.p
  local there
  if kind == "res" then
    local budget, execution = string.match(id, "^(%S+) (%S+)$")
    there = budget and redis.call("HEXISTS", keys.reserved(p, budget), execution) == 1
  elseif kind == "reset" or kind == "wake" then there = redis.call("EXISTS", keys.budget(p, id), keys.quota(p, id), kind == "wake" and keys.waiting(p, id) or keys.absent(p.key)) > 0
  else return false end
  if not there then check.say(c, "I5", p.tag, "timer " .. kind .. ":" .. id .. " is of nothing", "drop the member", object) end
  return true
end

-- ---- mail ------------------------------------------------------------------------------------------------

-- A row that was applied ahead of its turn comes after the last one that was not.
function budget_check.ahead(c, key, number, before)
  local p = c.p
  local source = string.match(key, "(%l+%d+)$")
  local low = redis.call("HGET", p.key, "i{" .. string.gsub(source or "", "%d+", ":%0") .. "}") or "0"
  if not string.find(number, "^%d+$") or tonumber(number) <= tonumber(before) or tonumber(before) <= tonumber(string.match(low, "^%d+")) then
    check.say(c, "I15", p.tag, "row " .. string.sub(number, 1, 40) .. " of " .. tostring(source) .. " stands ahead and is not", "drop the member", check.object(p, key, number))
  end
end

-- A row that is owed is one that was numbered.
function budget_check.owed(c, key, row, text)
  local p = c.p
  local target, _, number = outbox.parts(row)
  local last = target and redis.call("HGET", p.key, "o" .. target) or "0"
  if not target or tonumber(number) > tonumber(last) or not string.find(text, "^{%l+:%d+} %S+ ") then
    check.say(c, "I15", p.tag, "row " .. string.sub(row, 1, 60) .. " of the outbox is none", "", check.object(p, key, row))
  end
  if not redis.call("ZSCORE", keys.timers(p), "outbox:" .. row) then
    check.say(c, "I5", p.tag, "row " .. row .. " of the outbox is never delivered", "set its timer", check.object(p, key, row))
  end
end

-- Rows of shared/kinds.lua.
local UUID = "(%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x)"
local function nothing() end

budget_check.ROWS = {
  { name = "outbox", type = "hash", parts = {}, whole = nothing, member = budget_check.owed },
  { name = "inbox", type = "zset", parts = { "(%l+%d+)" }, whole = nothing, member = budget_check.ahead },
  { name = "budget", type = "hash", parts = { UUID }, whole = budget_check.budget, costs = 6 },
  { name = "budgets", type = "zset", parts = {}, whole = nothing, member = budget_check.listed },
  { name = "reserved", type = "hash", parts = { UUID }, whole = budget_check.beside, member = budget_check.reserved },
  { name = "reports", type = "zset", parts = { UUID }, whole = budget_check.reported },
  { name = "spent", type = "hash", parts = { UUID }, whole = budget_check.beside, member = budget_check.spent },
  { name = "spenders", type = "zset", parts = { UUID }, whole = budget_check.beside, member = budget_check.ranked },
  { name = "waiting", type = "hash", parts = { UUID }, whole = budget_check.waited_for, member = budget_check.waits },
}
end
