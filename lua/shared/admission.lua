-- shared/admission.lua -- what an execution must be admitted by, and the queue it therefore waits in.
--
-- Budgets it spends from, quotas it takes a place of, a key it holds alone: one text of lines (ffcore/admission.py), kept
-- in the detail hash. The budgets and quotas of it, sorted, make its admission set: executions with the same set wait in
-- one queue, because what keeps one of them from starting keeps all of them. Such a set that was refused is halted: its
-- queue is out of every claim's way until the halt is over or a release is heard of.

local admission = {}
do -- helpers of this file; a chunk holds 200 locals

local UUID = "%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x"
local BUDGET_ID, QUOTA_ID = "^{b:%d+}:" .. UUID .. "$", "^{q:%d+}:" .. UUID .. "$"
local ON_EXCEED = { hold = true, fail = true, suspend = true, cancel = true }
local SCOPES = { queued = "q", active = "a", window = false, forever = false }

local function is_amount(text)
  local whole, places = string.match(text, "^(%d+)%.?(%d*)$")
  return whole and #whole <= 16 and #places <= 6 and (places ~= "" or not string.find(text, ".", 1, true))
    and tonumber(text) < 9007199254740992
end

-- Whether a text is "-" or amounts, "tokens=5,usd=0.25".
local function are_amounts(text)
  if text == "-" then return true end
  local n, length, seen = 0, 0, {}
  for part in string.gmatch(text, "[^,]+") do
    local name, amount = string.match(part, "^([%a_][%w_.%-]*)=([%d.]+)$")
    if not name or #name > 64 or seen[name] or not is_amount(amount) then return false end
    n, length, seen[name] = n + 1, length + #part + 1, true
  end
  return n > 0 and n <= LIMITS.DIMENSIONS_N and length == #text + 1
end

-- One line: the part of it that makes the admission set ("" for a unique key's) and the letter of a unique key's scope.
-- nil when it cannot be read.
local function read_line(line)
  local kind, id, rest = string.match(line, "^([bqu]) (%S+) (.+)$")
  if kind == "b" then
    local word, amounts = string.match(rest, "^(%l+) (%S+)$")
    if word and ON_EXCEED[word] and string.find(id, BUDGET_ID) and are_amounts(amounts) then return "b " .. id end
  elseif kind == "q" then
    local word, key = string.match(rest, "^(%l+) ([%w_.~%%%-]+)$")
    if word and ON_EXCEED[word] and string.find(id, QUOTA_ID) and #key <= 128 then return "q " .. id .. " " .. key end
  elseif kind == "u" then
    local scope = SCOPES[rest]
    if scope ~= nil and string.find(id, QUOTA_ID) then return "", scope end
  end
end

-- Whether a text is the id of a budget or a quota.
function admission.is_resource(text) return string.find(text, BUDGET_ID) ~= nil or string.find(text, QUOTA_ID) ~= nil end

-- The budgets a policy names, as lines; nil: none; false: they cannot be read.
function admission.budgets(list)
  if list == nil then return nil end
  if type(list) ~= "table" or #list > LIMITS.ADMISSIONS_N then return false end
  local lines = {}
  for i = 1, #list do
    if type(list[i]) ~= "string" or not string.find(list[i], BUDGET_ID) then return false end
    lines[i] = "b " .. list[i] .. " hold -"
  end
  return #lines > 0 and lines or nil
end

-- The first line whose partition this store does not have: what is owed to it would be owed for ever. nil: none.
local function of_no_partition(p, lines)
  local counts = cjson.decode(redis.call("HGET", p.key, "counts") or "{}")
  for i = 1, #lines do
    local family, number = string.match(lines[i], "^%l {(%l):(%d+)}")
    if tonumber(number) >= (tonumber(counts[family]) or 0) then return i end
  end
end

-- What a text says: { text, adm, unique }. Budgets of the plan (admission.budgets) that it does not name are added. nil and
-- what is wrong when it cannot be read. Most executions of a plan have the same text: read once.
function admission.read(plan, text)
  local known = plan.admissions
  if not known then
    known = {}
    plan.admissions = known
  end
  local found = known[text or ""]
  if found then return found end
  local lines, parts, seen, unique = {}, {}, {}, nil
  for line in string.gmatch((text or "") .. "\n", "([^\n]*)\n") do
    if text then
      local part, scope = read_line(line)
      if not part then return nil, "admission: line " .. #lines + 1 .. " cannot be read" end
      local name = string.match(line, "^%l (%S+)") .. part
      if seen[name] then return nil, "admission: line " .. #lines + 1 .. " names the same again" end
      if part == "" and unique ~= nil then return nil, "admission: one unique key at most" end
      if part == "" then unique = scope else parts[#parts + 1] = part end
      lines[#lines + 1], seen[name] = line, true
    end
  end
  for i = 1, #(plan.budgets or {}) do
    local part = string.match(plan.budgets[i], "^b %S+")
    if not seen[string.sub(part, 3) .. part] then
      lines[#lines + 1], parts[#parts + 1] = plan.budgets[i], part
      seen[string.sub(part, 3) .. part] = true
    end
  end
  if #lines > LIMITS.ADMISSIONS_N then return nil, "admission: at most " .. LIMITS.ADMISSIONS_N .. " lines" end
  local whole = table.concat(lines, "\n")
  if #whole > LIMITS.ADMISSION_BYTES then return nil, "admission: at most " .. LIMITS.ADMISSION_BYTES .. " bytes" end
  local nowhere = plan.p and of_no_partition(plan.p, lines)
  if nowhere then return nil, "admission: line " .. nowhere .. " names a partition this store does not have" end
  table.sort(parts)
  found = { text = whole, unique = unique or nil, adm = parts[1] and string.sub(redis.sha1hex(table.concat(parts, "\n")), 1, 12) or nil }
  known[text or ""] = found
  return found
end

-- ---- queues of admission sets --------------------------------------------------------------------------
-- Under a lane and a capability set the ring has each admission set with ready jobs, by the score of its first one. The
-- score may be too low: it is corrected when the set has come to the head. Sets that are halted stand in a like set
-- beside it, out of every claim's way, until they are opened again.

local LOOK_N = 64     -- sets one look at a ring may put right; each of them is progress
local TRIAL_N = 16    -- jobs of a set that may ask when its halt is over, before the others do
local TRIAL_MS = 100  -- how long it takes until they do, when none of those was refused
local TEXT_BYTES = 200
local LAST = 2 ^ 53   -- behind every score

-- A halt: { over_at, allow, passed, places, kind, uuid, text }. `allow`: so many may start though it is not over;
-- `passed`: some were let ask since the last refusal, and none of them was refused.
local function read_halt(text)
  local over_at, allow, passed, places, kind, uuid, why = string.match(text or "", "^(%d+) (%d+) ([01]) (%S+) (%l) (%S+) (.*)$")
  if not over_at then return nil end
  return { over_at = tonumber(over_at), allow = tonumber(allow), passed = passed == "1", places = places, kind = kind, uuid = uuid, text = why }
end
admission.read_halt = read_halt

function admission.halt(p, adm)
  local seen = p.halted
  if not seen then
    seen = {}
    p.halted = seen
  end
  local row = seen[adm]
  if row == nil then
    row = read_halt(redis.call("HGET", keys.halts(p), adm) or nil) or false
    seen[adm] = row
  end
  return row or nil
end

-- Whether jobs of a set may not start now.
function admission.is_halted(p, adm)
  local row = admission.halt(p, adm)
  return row ~= nil and row.over_at > p.now and row.allow <= 0
end

-- What all jobs of a lane with a quota of its own are halted under.
function admission.lane_set(lane) return lane.quota and "lane:" .. string.match(lane.quota, ":(%x[%x%-]+)$") end

-- The halt that keeps a record in line from starting: of its set, or else of its lane; nil: none does.
function admission.halting(p, x)
  if x.adm and not x.pending_outcome and admission.is_halted(p, x.adm) then return admission.halt(p, x.adm) end
  local whole = admission.lane_set(lanes.of(p, x.lane))
  if whole and admission.is_halted(p, whole) then return admission.halt(p, whole) end
end

local function write_halt(p, adm, row)
  redis.call("HSET", keys.halts(p), adm, string.format("%.0f %.0f %d ", row.over_at, row.allow, row.passed and 1 or 0)
    .. row.places .. " " .. row.kind .. " " .. row.uuid .. " " .. row.text)
  p.halted[adm] = row
  timers.set(p, "halt", adm, row.over_at)
end

-- One of a halted set starts: so many fewer may.
function admission.take(p, adm)
  local row = admission.halt(p, adm)
  if not row or row.over_at <= p.now or row.allow <= 0 then return end
  row.allow = row.allow - 1
  if row.allow == 0 then
    row.passed, row.over_at = true, math.min(row.over_at, p.now + TRIAL_MS)
  end
  write_halt(p, adm, row)
end

-- One that was taken did not come to ask.
function admission.give_back(p, adm)
  local row = admission.halt(p, adm)
  if not row or row.over_at <= p.now then return end
  row.allow = row.allow + 1
  write_halt(p, adm, row)
end

local function is_shut(p, lane_no, cap, adm)
  local seen = p.shut
  if not seen then
    seen = {}
    p.shut = seen
  end
  local class = lane_no .. ":" .. cap .. "." .. adm
  if seen[class] == nil then seen[class] = redis.call("ZSCORE", keys.shut(p, lane_no, cap), adm) and true or false end
  return seen[class]
end

-- A job of a set has come into its queue. Whether claims look into it.
function admission.enter(p, lane, cap, adm, score)
  lane.classed = lane.classed + 1
  lanes.changed(p, lane)
  local shut = is_shut(p, lane.no, cap, adm)
  local key = shut and keys.shut(p, lane.no, cap) or keys.ring(p, lane.no, cap)
  local all = p.ring_writes
  if not all then
    all = {}
    p.ring_writes = all
  end
  local set = all[key]
  if not set then
    set = { at = {} }
    all[#all + 1], all[key] = key, set
  end
  if not set.at[adm] then set[#set + 1] = adm end
  if not set.at[adm] or set.at[adm] > score then set.at[adm] = score end
  return not shut
end

-- One has left its queue.
function admission.leave(p, lane)
  lane.classed = math.max(0, lane.classed - 1)
  lanes.changed(p, lane)
end

-- One that was popped goes back.
function admission.put_back(p, lane, cap, adm, score)
  lane.classed = lane.classed + 1
  lanes.changed(p, lane)
  redis.call("ZADD", keys.ring(p, lane.no, cap), "LT", score, adm)
  admission.give_back(p, adm)
end

function admission.flush(p)
  local all = p.ring_writes
  if not all then return end
  p.ring_writes = nil
  for i = 1, #all do
    local set, flat = all[all[i]], {}
    for j = 1, #set do flat[2 * j - 1], flat[2 * j] = set.at[set[j]], set[j] end
    for from = 1, #flat, 400 do redis.call("ZADD", all[i], "LT", unpack(flat, from, math.min(from + 399, #flat))) end
  end
end

local function add_place(row, place)
  if row.places == "-" then row.places = place
  elseif not string.find("," .. row.places .. ",", "," .. place .. ",", 1, true) then row.places = row.places .. "," .. place
  else return false end
  return true
end

-- A set leaves the ring while its halt lasts; the halt knows where to put it back.
local function shut_out(p, lane_no, cap, adm, score)
  redis.call("ZREM", keys.ring(p, lane_no, cap), adm)
  redis.call("ZADD", keys.shut(p, lane_no, cap), "LT", score, adm)
  if p.shut then p.shut[lane_no .. ":" .. cap .. "." .. adm] = true end
  local row = admission.halt(p, adm)
  if add_place(row, lane_no .. ":" .. cap) then write_halt(p, adm, row) end
end

-- The set that is served next under a capability set, and the score of its first job; nil when there is none that may.
function admission.head(p, lane, cap)
  local ring = keys.ring(p, lane.no, cap)
  for _ = 1, LOOK_N do
    local got = redis.call("ZRANGE", ring, 0, 0, "WITHSCORES")
    local adm = got[1]
    if not adm then return nil end
    local first = redis.call("ZRANGE", keys.queue(p, lane.no, cap .. "." .. adm), 0, 0, "WITHSCORES")
    if not first[1] then redis.call("ZREM", ring, adm)
    elseif admission.is_halted(p, adm) then shut_out(p, lane.no, cap, adm, first[2])
    elseif tonumber(first[2]) <= tonumber(got[2]) then return adm, tonumber(first[2])
    else redis.call("ZADD", ring, first[2], adm) end
  end
  p.look_again = true
end

-- ---- halts ---------------------------------------------------------------------------------------------

-- Keep a set from starting until then: what a budget or a quota said to one of its jobs it would say to all. `place`:
-- where that job stands, "<lane>:<capability set>"; of a lane's own quota (kind l) it says the lane. A halt for another
-- reason that lasts longer stays, unless a release of that has let this job ask: then it waits for what refused it now.
function admission.stop(p, adm, over_at, kind, uuid, text, place)
  admission.flush(p)
  local row = admission.halt(p, adm)
  if not row or row.uuid == uuid or row.over_at <= over_at or row.allow > 0 or row.passed then
    row = { over_at = over_at, allow = 0, passed = false, places = row and row.places or "-", kind = kind, uuid = uuid,
      text = names.cut(text, TEXT_BYTES) }
  end
  if row.kind == "l" then add_place(row, place) end
  write_halt(p, adm, row)
  if row.kind == "l" then return end
  local lane_no, cap = string.match(place, "^(%d+):(.+)$")
  -- Nothing of it need be ready: what comes into its queue brings the score.
  shut_out(p, lane_no, cap, adm, redis.call("ZSCORE", keys.ring(p, lane_no, cap), adm) or LAST)
end

-- Let a set start again, so many of it. Places it was taken out of get it back, and workers are rung wherever some of it
-- are ready: one that was let start before may have come to be halted in its place, and nobody has looked at it since.
local function open(p, adm, row, allow)
  if row.kind == "l" then
    for lane_no in string.gmatch(row.places, "(%d+):") do
      for _ = 1, math.min(allow, LIMITS.HEADS_N) do wake.ring(p, lane_no, "-") end
    end
    return
  end
  admission.flush(p)
  for lane_no, cap in string.gmatch(row.places, "(%d+):([^,]+)") do
    local score = redis.call("ZSCORE", keys.shut(p, lane_no, cap), adm)
    if score then
      redis.call("ZREM", keys.shut(p, lane_no, cap), adm)
      redis.call("ZADD", keys.ring(p, lane_no, cap), "LT", score, adm)
      if p.shut then p.shut[lane_no .. ":" .. cap .. "." .. adm] = nil end
    end
    local ready = redis.call("ZCARD", keys.queue(p, lane_no, cap .. "." .. adm))
    for _ = 1, math.min(allow, ready, LIMITS.HEADS_N) do wake.ring(p, lane_no, cap) end
  end
end

-- The halt is over: a few ask, and if none of them is refused, all may.
function admission.over(p, adm)
  local row = admission.halt(p, adm)
  if not row then return end
  if row.over_at > p.now then
    timers.set(p, "halt", adm, row.over_at)
    return
  end
  open(p, adm, row, TRIAL_N)
  if row.passed then
    redis.call("HDEL", keys.halts(p), adm)
    p.halted[adm] = false
    return
  end
  row.allow, row.passed, row.over_at = TRIAL_N, true, p.now + TRIAL_MS
  write_halt(p, adm, row)
end

-- What a set waits for has been released, for about so many of its jobs. One more may ask: whoever is refused is
-- remembered there, and so the next release will be heard of, too.
inbox.on("unhalt", function(p, body)
  local adm, uuid, gen, allow = string.match(body, "^(%S+) (%S+) (%d+) (%d+)$")
  if not adm then return end
  local seen = tonumber(string.match(redis.call("HGET", keys.halts(p), "o:" .. uuid) or "", "^%d+") or "-1")
  redis.call("HSET", keys.halts(p), "o:" .. uuid, string.format("%.0f %.0f", math.max(seen, tonumber(gen)), p.now))
  timers.reap_first(p, "halts", uuid, p.now + 2 * LIMITS.HALT_MS)
  local row = admission.halt(p, adm)
  if not row or row.uuid ~= uuid or row.over_at <= p.now then return end
  open(p, adm, row, tonumber(allow) + 1)
  row.allow, row.passed = tonumber(allow) + 1, false
  write_halt(p, adm, row)
end)

-- Whether the release was heard of, or a later one, that would have made a refusal another answer. `gen` 0: of what
-- refused nobody is told anything.
function admission.has_passed(p, uuid, gen)
  if gen == 0 then return false end
  local seen = tonumber(string.match(redis.call("HGET", keys.halts(p), "o:" .. uuid) or "", "^%d+") or "-1")
  return seen >= gen
end

-- Forget the release of a budget or a quota that no refusal on its way can be older than; nothing else is looked at, for
-- a hundred thousand sets may be halted. Answers when it will be that old, or nil.
function admission.forget_release(p, uuid)
  local at = tonumber(string.match(redis.call("HGET", keys.halts(p), "o:" .. uuid) or "", " (%d+)$") or "0")
  if at + 2 * LIMITS.HALT_MS > p.now then return at + 2 * LIMITS.HALT_MS end
  redis.call("HDEL", keys.halts(p), "o:" .. uuid)
end

-- ---- what is owed when a lease or an execution ends ----------------------------------------------------

local function owe(p, line, x, undo)
  local kind, tag, uuid, rest = string.match(line, "^([bq]) ({%l:%d+}):(%S+) (.+)$")
  if not kind then return end
  local key = kind == "q" and string.match(rest, "(%S+)$") or "-"
  outbox.add(p, tag, "settle", table.concat({ kind, uuid, key, p.id_prefix .. x.id, x.lease_epoch or "0", undo and "1" or "0" }, " "))
end

-- A lease of an execution ends: whatever admitted it is told, in a row for each. `undo`: it has not started.
function admission.settle(p, x)
  if x.adm and not x.pending_outcome then
    local text = redis.call("HGET", keys.detail(p, x.id), "admission") or ""
    for line in string.gmatch(text, "[^\n]+") do owe(p, line, x, x.undo) end
  end
  if x.lane_quota then
    owe(p, "q " .. x.lane_quota .. " hold -", x, x.undo)
    record.write(p, x, "lane_quota", false)
  end
  x.undo = nil
end

-- An execution holds its unique key no longer.
function admission.free(p, x)
  local text = redis.call("HGET", keys.detail(p, x.id), "admission") or ""
  local tag, uuid = string.match("\n" .. text, "\nu ({%l:%d+}):(%S+) ")
  record.write(p, x, "unique", false)
  if tag then outbox.add(p, tag, "free", uuid .. " " .. p.id_prefix .. x.id) end
end

-- What a worker asks for before it starts a job: the text given with it, and behind it, marked, its lane's quota. nil:
-- nothing.
function admission.asked(p, x)
  local set, quota = x.adm and not x.pending_outcome, x.lane_quota
  if not set and not quota then return nil end
  local text = set and redis.call("HGET", keys.detail(p, x.id), "admission") or nil
  if not quota then return text end
  return (text and text .. "\n" or "") .. "q " .. quota .. " hold - lane"
end

end
