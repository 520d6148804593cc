-- shared/budgets.lua -- budgets: how much of some dimensions may be spent, what has been, and what is set apart.
--
-- The record is a hash: name ns scope scope_id mode on_hard on_soft every created next period breaches soft_breaches
-- last_at last_dim gen, and for each dimension h: (hard limit) s: (soft) u: (used) r: (reserved). A limit of 0 is none.
--   used      what was reported in this period; attributed to executions in keys.spent, "-" for what is nobody's
--   reserved  what running executions may still spend of their estimates; keys.reserved says whose
-- A job is admitted while used + reserved + its estimate stay within every hard limit. What is spent is recorded
-- whether it was reserved or not (mode record), because it has been spent.
--
-- A budget is loaded once in a call, and written once by budgets.close.

local budgets = {}
do   -- helpers of this file

local UNTIL_MIN_MS = 1000

local function whole(n) return string.format("%.0f", n) end
budgets.whole = whole

function budgets.set(b, field, value)
  local writes = b.writes
  if not writes then
    writes = { at = {} }
    b.writes = writes
  end
  local at = writes.at[field]
  if not at then
    at = #writes + 2
    writes[at - 1], writes.at[field] = field, at
  end
  writes[at] = value
end

-- An answer that repeats an earlier one writes: whoever waits for copies of the store waits for the first one's, too.
function budgets.repeated(p) p.replays_n = p.replays_n + 1 end

local NUMBERS = { every = true, created = true, next = true, period = true, breaches = true, soft_breaches = true, gen = true }
local TABLES = { h = "hard", s = "soft", u = "used", r = "reserved" }

local function read(id, flat)
  local b = { id = id, dims = {}, hard = {}, soft = {}, used = {}, reserved = {} }
  for i = 1, #flat, 2 do
    local field, value = flat[i], flat[i + 1]
    if string.byte(field, 2) == 58 then
      local name, prefix = string.sub(field, 3), string.sub(field, 1, 1)
      if prefix == "u" then b.dims[#b.dims + 1] = name end
      b[TABLES[prefix]][name] = tonumber(value)
    else
      b[field] = NUMBERS[field] and tonumber(value) or value
    end
  end
  table.sort(b.dims)
  return b
end

-- The next instant of a budget's own rhythm: counted from its creation, so that a late reset moves nothing.
local function next_reset(b, now)
  if b.every <= 0 then return 0 end
  return b.created + (math.floor((now - b.created) / b.every) + 1) * b.every
end

-- A new period: nothing is used. What is reserved stays, it belongs to what runs.
local function begin_period(p, b)
  for i = 1, #b.dims do b.used[b.dims[i]] = 0 end
  b.period, b.next = b.period + 1, next_reset(b, p.now)
end

local function keep_period(p, b)
  for i = 1, #b.dims do budgets.set(b, "u:" .. b.dims[i], "0") end
  budgets.set(b, "period", b.period)
  budgets.set(b, "next", whole(b.next))
  if b.next > 0 then timers.set(p, "reset", b.id, b.next) else timers.clear(p, "reset", b.id) end
  redis.call("UNLINK", keys.spent(p, b.id), keys.spenders(p, b.id))
  b.freed = true
end

-- The budget of a uuid as it is now, or nil. Whoever looks first after its reset was due does it.
function budgets.load(p, id)
  local known = p.budgets and p.budgets[id]
  if known ~= nil then return known or nil end
  p.budgets = p.budgets or {}
  local flat = redis.call("HGETALL", keys.budget(p, id))
  if #flat == 0 then
    p.budgets[id] = false
    return nil
  end
  local b = read(id, flat)
  p.budgets[id] = b
  p.budget_list = p.budget_list or {}
  table.insert(p.budget_list, b)
  if b.next > 0 and b.next <= p.now then
    begin_period(p, b)
    keep_period(p, b)
  end
  return b
end

-- The same for a function that writes nothing. `fresh`: its period is over and nobody has said so yet.
function budgets.look(p, id)
  local flat = redis.call("HGETALL", keys.budget(p, id))
  if #flat == 0 then return nil end
  local b = read(id, flat)
  if b.next > 0 and b.next <= p.now then
    begin_period(p, b)
    b.fresh = true
  end
  return b
end

function budgets.reset(p, b)
  begin_period(p, b)
  keep_period(p, b)
end

-- How often amounts fit beside what is used and reserved.
local function fits(b, text)
  local _, wanted = amounts.parse(text)
  local most = waiting.ALLOW_N
  for i = 1, #b.dims do
    local name = b.dims[i]
    local hard = b.hard[name] or 0
    if hard > 0 then
      if b.used[name] >= hard then return 0 end
      local each = wanted and wanted[name] or 0
      if each > 0 then most = math.min(most, math.floor(amounts.less(hard, amounts.add(b.used[name], b.reserved[name] or 0)) / each)) end
    end
  end
  return most
end

local function wake(p, b)
  b.freed = nil
  if not waiting.any(p, b.id) then return end
  b.gen = b.gen + 1
  budgets.set(b, "gen", whole(b.gen))
  if waiting.wake(p, b.id, b.gen, function(text) return fits(b, text) end) then timers.set(p, "wake", b.id, p.now) end
end

local function save(p, b)
  local writes = b.writes
  if not writes then return end
  b.writes = nil
  redis.call("HSET", keys.budget(p, b.id), unpack(writes))
end

-- At the end of a call that changed budgets. `answers`: it hands what it owes to its caller (ff_deliver, ff_tick); any
-- other leaves the waking to the ticker, which hears of it at once.
function budgets.close(p, answers)
  local list = p.budget_list or {}
  for i = 1, #list do
    local b = list[i]
    if b.freed and not b.deleted then
      if answers then wake(p, b)
      elseif waiting.any(p, b.id) then timers.set(p, "wake", b.id, p.now) end
    end
    b.freed = nil
    save(p, b)
  end
end

-- ---- making and changing ---------------------------------------------------------------------------------

function budgets.create(p, id, fields, hard, soft, dims)
  local b = { id = id, dims = dims, used = {}, reserved = {}, hard = hard, soft = soft, every = fields.every, created = p.now }
  b.next = next_reset(b, p.now)
  local flat = { "every", whole(b.every), "created", whole(p.now), "next", whole(b.next), "period", "1",
    "breaches", "0", "soft_breaches", "0", "gen", whole(p.now) }   -- those of a budget that was there before are lower
  for i = 1, #fields.texts do flat[#flat + 1] = fields.texts[i] end
  for i = 1, #dims do
    local name = dims[i]
    flat[#flat + 1], flat[#flat + 2] = "u:" .. name, "0"
    if (hard[name] or 0) > 0 then flat[#flat + 1], flat[#flat + 2] = "h:" .. name, amounts.text(hard[name]) end
    if (soft[name] or 0) > 0 then flat[#flat + 1], flat[#flat + 2] = "s:" .. name, amounts.text(soft[name]) end
  end
  redis.call("HSET", keys.budget(p, id), unpack(flat))
  redis.call("ZADD", keys.budgets(p), 0, id)
  if b.next > 0 then timers.set(p, "reset", id, b.next) end
end

-- A dimension that is counted from now on; false where there are too many.
function budgets.track(b, name)
  if b.used[name] then return true end
  if #b.dims >= LIMITS.DIMENSIONS_N then return false end
  b.dims[#b.dims + 1] = name
  table.sort(b.dims)
  b.used[name] = 0
  budgets.set(b, "u:" .. name, "0")
  return true
end

-- New limits for all dimensions; those that are not named have none any more. `which` is "hard" or "soft".
function budgets.limit(p, b, which, by_name)
  local prefix, gone = string.sub(which, 1, 1) .. ":", {}
  for i = 1, #b.dims do
    local name = b.dims[i]
    local limit = by_name[name] or 0
    if limit ~= (b[which][name] or 0) then
      if limit > 0 then budgets.set(b, prefix .. name, amounts.text(limit)) else gone[#gone + 1] = prefix .. name end
      b[which][name] = limit > 0 and limit or nil
      b.freed = b.freed or which == "hard"
    end
  end
  if #gone > 0 then redis.call("HDEL", keys.budget(p, b.id), unpack(gone)) end
end

function budgets.rhythm(p, b, every)
  b.every = every
  b.next = next_reset(b, p.now)
  budgets.set(b, "every", whole(every))
  budgets.set(b, "next", whole(b.next))
  if b.next > 0 then timers.set(p, "reset", b.id, b.next) else timers.clear(p, "reset", b.id) end
end

function budgets.word(b, field, value)
  b[field] = value
  budgets.set(b, field, value)
end

function budgets.delete(p, b)
  b.deleted, b.writes = true, nil
  local holders = redis.call("HKEYS", keys.reserved(p, b.id))
  for i = 1, #holders do holders[i] = "res:" .. b.id .. " " .. holders[i] end
  for from = 1, #holders, 1000 do redis.call("ZREM", keys.timers(p), unpack(holders, from, math.min(from + 999, #holders))) end
  timers.clear(p, "reset", b.id)
  if waiting.any(p, b.id) then timers.set(p, "wake", b.id, p.now) else timers.clear(p, "wake", b.id) end
  timers.unreap(p, "reports", b.id)
  redis.call("ZREM", keys.budgets(p), b.id)
  redis.call("UNLINK", keys.budget(p, b.id), keys.reserved(p, b.id), keys.reports(p, b.id), keys.spent(p, b.id),
    keys.spenders(p, b.id))
end

-- ---- reservations ----------------------------------------------------------------------------------------

-- Of an execution: epoch, until, what is left (names, amounts). nil when it has none.
function budgets.reservation(p, b, execution)
  local text = redis.call("HGET", keys.reserved(p, b.id), execution)
  if not text then return nil end
  local epoch, until_ms, left = string.match(text, "^(%d+) (%d+) (.*)$")
  local names_of, by_name = amounts.parse(left)
  return { epoch = tonumber(epoch), until_ms = tonumber(until_ms), names = names_of, left = by_name }
end

local function reserve_amounts(b, held, sign)
  for i = 1, #held.names do
    local name = held.names[i]
    local n = b.reserved[name] or 0
    b.reserved[name] = sign > 0 and amounts.add(n, held.left[name]) or amounts.less(n, held.left[name])
    budgets.set(b, "r:" .. name, amounts.text(b.reserved[name]))
  end
end

local function put(p, b, execution, held)
  redis.call("HSET", keys.reserved(p, b.id), execution,
    whole(held.epoch) .. " " .. whole(held.until_ms) .. " " .. amounts.pack(held.names, held.left))
  timers.set(p, "res", b.id .. " " .. execution, held.until_ms)
end

local function within(p, until_ms)
  return math.min(math.max(until_ms, p.now + UNTIL_MIN_MS), p.now + LIMITS.LEASE_TTL_MAX_MS)
end

-- Close a reservation: what is left of it is free.
function budgets.release(p, b, execution, held)
  reserve_amounts(b, held, -1)
  redis.call("HDEL", keys.reserved(p, b.id), execution)
  timers.clear(p, "res", b.id .. " " .. execution)
  b.freed = true
end

-- The reservation of this lease or an earlier one is over.
function budgets.settle(p, b, execution, epoch)
  local held = budgets.reservation(p, b, execution)
  if held and held.epoch <= epoch then budgets.release(p, b, execution, held) end
end

-- Ask for one execution. Answers granted | refused | never, dimension, limit, available, when it may be otherwise.
-- All of its amounts or none. The same lease again is answered as before, a later one takes the place of an earlier.
function budgets.reserve(p, b, item, names_of, by_name)
  local held = budgets.reservation(p, b, item.execution_id)
  if held and held.epoch == item.epoch then
    budgets.repeated(p)
    return { "granted", "", "0", "0", 0, b.gen + 1 }
  end
  if held and held.epoch > item.epoch then return { "refused", "", "0", "0", 0, b.gen + 1 } end
  if held then budgets.release(p, b, item.execution_id, held) end
  local refused, wanted = nil, {}
  for i = 1, #names_of do if b.used[names_of[i]] and by_name[names_of[i]] > 0 then wanted[#wanted + 1] = names_of[i] end end
  for i = 1, #b.dims do
    local name = b.dims[i]
    local hard, used, want = b.hard[name] or 0, b.used[name], by_name[name] or 0
    if hard > 0 then
      local taken = amounts.add(used, b.reserved[name] or 0)
      if want > hard then return { "never", name, amounts.text(hard), amounts.text(amounts.less(hard, taken)), 0, b.gen + 1 } end
      if not refused and (used >= hard or amounts.add(taken, want) > hard) then
        -- Where reservations alone are in the way their end is what helps, and nobody knows when that is.
        local retry = (used >= hard or amounts.add(used, want) > hard) and b.next or 0
        refused = { "refused", name, amounts.text(hard), amounts.text(amounts.less(hard, taken)), retry, b.gen + 1 }
      end
    end
  end
  if refused then
    if not waiting.note(p, b.id, item.partition, item.adm, amounts.pack(wanted, by_name)) then refused[6] = 0 end
    return refused
  end
  if #wanted > 0 then
    local own = { epoch = item.epoch, until_ms = within(p, item.until_ms), names = wanted, left = by_name }
    reserve_amounts(b, own, 1)
    put(p, b, item.execution_id, own)
  end
  return { "granted", "", "0", "0", 0, b.gen + 1 }
end

-- A reservation past its lease: its owner's partition says whether it still runs. Never freed by time alone.
function budgets.overdue(p, b, execution)
  local held = budgets.reservation(p, b, execution)
  if not held then return end
  if held.until_ms > p.now then return timers.set(p, "res", b.id .. " " .. execution, held.until_ms) end
  timers.set(p, "res", b.id .. " " .. execution, p.now + LIMITS.RESERVATION_MS)
  inbox.wake(p, string.match(execution, "^{%l+:%d+}"), "verify",
    p.tag .. " b " .. b.id .. " - " .. execution .. " " .. whole(held.epoch))
end

function budgets.verified(p, b, execution, epoch, is_held)
  local held = budgets.reservation(p, b, execution)
  if not held or held.epoch ~= epoch then return end
  if not is_held then return budgets.release(p, b, execution, held) end
  held.until_ms = p.now + LIMITS.RESERVATION_MS
  put(p, b, execution, held)
end

-- Something of it has been spent under the lease that reserved: that much is not to be kept apart any more.
function budgets.draw(p, b, execution, epoch, by_name)
  local held = budgets.reservation(p, b, execution)
  if not held or held.epoch ~= epoch then return end
  reserve_amounts(b, held, -1)
  for i = 1, #held.names do
    local name = held.names[i]
    held.left[name] = amounts.less(held.left[name], by_name[name] or 0)
  end
  reserve_amounts(b, held, 1)
  redis.call("HSET", keys.reserved(p, b.id), execution,
    whole(held.epoch) .. " " .. whole(held.until_ms) .. " " .. amounts.pack(held.names, held.left))
end

end
