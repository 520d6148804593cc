-- shared/spending.lua -- what is spent of a budget: recorded once per key, attributed, compared with the limits.

do
local RAISES_KEPT_MS = 365 * 24 * 3600 * 1000
local SWEEP_MS = 60000

local whole, set = budgets.whole, budgets.set

-- ---- what was reported, remembered -----------------------------------------------------------------------

local function report_member(execution, key) return redis.sha1hex(execution .. " " .. key) end

function budgets.is_reported(p, b, execution, key)
  local until_ms = redis.call("ZSCORE", keys.reports(p, b.id), report_member(execution, key))
  return until_ms and tonumber(until_ms) > p.now
end

function budgets.remember(p, b, execution, key, span_ms)
  redis.call("ZADD", keys.reports(p, b.id), p.now + (span_ms or LIMITS.REPORT_KEYS_MS), report_member(execution, key))
  if not b.swept then
    b.swept = true
    timers.reap_first(p, "reports", b.id, p.now + LIMITS.REPORT_KEYS_MS)
  end
end

-- ---- who spent it ----------------------------------------------------------------------------------------

-- What stands against each execution, so that a budget can say who spent it. Of the smallest only the sum is kept.
local function attribute(p, b, execution, names_of, by_name)
  local key, ranks = keys.spent(p, b.id), keys.spenders(p, b.id)
  local spent_names, spent = amounts.parse(redis.call("HGET", key, execution) or "")
  for i = 1, #names_of do
    local name = names_of[i]
    if not spent[name] then
      spent_names[#spent_names + 1], spent[name] = name, 0
    end
    spent[name] = amounts.add(spent[name], by_name[name])
  end
  table.sort(spent_names)
  redis.call("HSET", key, execution, amounts.pack(spent_names, spent))
  if execution == "-" then return end
  local share = 0
  for i = 1, #spent_names do
    local hard = b.hard[spent_names[i]] or 0
    share = share + spent[spent_names[i]] / (hard > 0 and hard or amounts.MOST)
  end
  local added = redis.call("ZADD", ranks, string.format("%.17g", share), execution)
  if added == 0 or redis.call("ZCARD", ranks) <= LIMITS.SPENDERS_N then return end
  local least = redis.call("ZPOPMIN", ranks)[1]
  local rest_names, rest = amounts.parse(redis.call("HGET", key, least))
  redis.call("HDEL", key, least)
  attribute(p, b, "-", rest_names, rest)
end

-- How a budget stands in some dimensions: a hard limit passed, a soft one, or neither.
local function standing(b, asked, unknown)
  local soft
  for i = 1, #asked do
    local name = asked[i]
    local used, most, warn = b.used[name] or 0, b.hard[name] or 0, b.soft[name] or 0
    if most > 0 and used > most then return { "hard", name, amounts.text(used), amounts.text(most), unknown, true } end
    if warn > 0 and used > warn and not soft then soft = name end
  end
  if soft then return { "soft", soft, amounts.text(b.used[soft]), amounts.text(b.soft[soft]), unknown } end
  return { "ok", "", "0", "0", unknown }
end

-- Spend of the budget's dimensions; the others are passed over and named last in the answer. Answers ok | soft | hard |
-- already, dimension, usage, limit, what was passed over, and for "hard" whether it was recorded. With a key that was
-- recorded before: the limit that is passed now, or "already". Without amounts: how it stands.
function budgets.spend(p, b, execution, epoch, key, names_of, by_name)
  local mine, passed = {}, {}
  for i = 1, #names_of do
    local name = names_of[i]
    if not b.used[name] then passed[#passed + 1] = name elseif by_name[name] > 0 then mine[#mine + 1] = name end
  end
  local unknown = table.concat(passed, ",")
  if key and budgets.is_reported(p, b, execution, key) then
    local now = standing(b, names_of, unknown)
    if now[1] == "ok" then now[1] = "already" end
    now.again = true
    budgets.repeated(p)
    return now
  end
  if #mine == 0 then return standing(b, #names_of > 0 and mine or b.dims, unknown) end
  local hard
  local after = {}
  for i = 1, #mine do
    local name = mine[i]
    after[name] = amounts.add(b.used[name], by_name[name])
    local most = b.hard[name] or 0
    if most > 0 and after[name] > most and not hard then hard = name end
  end
  if hard then
    b.breaches = b.breaches + 1
    set(b, "breaches", whole(b.breaches))
    set(b, "last_at", whole(p.now))
    set(b, "last_dim", hard)
    if b.mode == "refuse" then return { "hard", hard, amounts.text(b.used[hard]), amounts.text(b.hard[hard]), unknown, false } end
  end
  for i = 1, #mine do
    local name = mine[i]
    local warn = b.soft[name] or 0
    if warn > 0 and b.used[name] <= warn and after[name] > warn then
      b.soft_breaches = b.soft_breaches + 1
      set(b, "soft_breaches", whole(b.soft_breaches))
    end
    b.used[name] = after[name]
    set(b, "u:" .. name, amounts.text(after[name]))
  end
  attribute(p, b, execution, mine, by_name)
  if execution ~= "-" then budgets.draw(p, b, execution, epoch, by_name) end
  if key then budgets.remember(p, b, execution, key) end
  return standing(b, mine, unknown)
end

-- More of some hard limits, once per key. Answers whether it was done before.
function budgets.raise(p, b, key, names_of, by_name)
  if budgets.is_reported(p, b, "raise", key) then
    budgets.repeated(p)
    return true
  end
  for i = 1, #names_of do
    local name = names_of[i]
    b.hard[name] = amounts.add(b.hard[name], by_name[name])
    set(b, "h:" .. name, amounts.text(b.hard[name]))
  end
  b.freed = true
  budgets.remember(p, b, "raise", key, RAISES_KEPT_MS)
  return false
end

-- Keys of reports that are out of date. Answers how many went.
function budgets.forget_reports(p, id, most)
  local key = keys.reports(p, id)
  local old = redis.call("ZRANGE", key, "-inf", p.now, "BYSCORE", "LIMIT", 0, most)
  if #old > 0 then redis.call("ZREM", key, unpack(old)) end
  local next_up = redis.call("ZRANGE", key, 0, 0, "WITHSCORES")[2]
  if next_up then timers.reap(p, "reports", id, math.max(tonumber(next_up), p.now + (#old == most and 0 or SWEEP_MS))) end
  return #old
end

end
