-- shared/check.lua -- what must be true of a record and of everything that points at one.
--
-- The record is the truth. A rule compares it with its indexes, timers and keys in one instant, and says what
-- differs: invariant (docs/model.md), id, detail, and how it can be put right (empty: it cannot). Each relation is
-- looked at from both ends: a record must stand where it says, and whatever stands somewhere must have a record
-- that says so. Nothing here writes.

local check = {}
local flow_check = {}   -- filled by shared/flow_check.lua
do   -- helpers of this file; a chunk holds 200 locals

local REASONS = {
  delayed = { waiting_for_retry_backoff = true, waiting_for_resume_delay = true, waiting_for_delay = true },
  blocked = { waiting_for_children = true, waiting_for_budget = true, waiting_for_quota = true, waiting_for_capable_worker = true,
    waiting_for_locality_match = true, paused_by_policy = true, paused_by_operator = true, paused_by_flow_cancel = true },
  suspended = { waiting_for_signal = true, waiting_for_approval = true, waiting_for_callback = true, waiting_for_tool_result = true,
    waiting_for_budget = true, paused_by_operator = true, paused_by_policy = true },
}
local NEXT = { initial = true, retry = true, reclaim = true, replay = true, resumed = true, compensation = true }
local NUMBERS = { "created_at", "at", "turn", "priority", "lease_epoch", "started_at", "attempt_started_at", "moved_at", "attempt",
  "attempt_deadline_at", "attempt_left_ms", "deadline_at", "deadline_ms", "retries", "crashes", "unseen", "hand_backs", "replays",
  "run", "cancel_until", "size", "suspension", "suspend_until", "node", "due" }
local SIGNALS_SUMMED_N = 100   -- of more their bytes are not added up
local PAST = { "created_at", "started_at", "attempt_started_at", "moved_at" }
local NOT_AFTER_THE_END = { "reason", "cancel_until", "waiter", "attempt_deadline_at", "grant", "paused" }

-- One pass over one page: rows found, and what is looked up once.
function check.begin(p)
  return { p = p, rows = {}, named = {}, armed = {}, sizes = {}, kids = {}, flow_counts = {}, flow_members = {}, spent = 0 }
end

function check.say(c, invariant, id, detail, remedy, object)
  -- Texts of users may have been cut within a character.
  c.rows[#c.rows + 1] = { invariant, id, (string.gsub(detail, "[%c\128-\255]", "?")), remedy or "", object or "" }
end

-- What to call a key when it is the thing that is wrong, and how repair finds it again.
function check.object(p, key, member) return string.sub(key, #p.key + 1) .. (member and " " .. member or "") end

-- Whether the lane table knows a lane's number.
function check.is_lane(c, number)
  if c.named[number] == nil then c.named[number] = lanes.name(c.p, number) ~= "" end
  return c.named[number]
end

-- Whether the reap set will look at something.
function check.is_armed(c, kind, id)
  local member = kind .. ":" .. id
  if c.armed[member] == nil then c.armed[member] = redis.call("ZSCORE", keys.reap(c.p), member) and true or false end
  return c.armed[member]
end

-- Where a record belongs, and its score there (nil: any).
function check.place(p, x)
  local row = state.TABLE[x.state]
  if row.queued then return queue.place(p, x) end
  if row.leased then return keys.leases(p), tonumber(x.at) end
  return keys.index(p, x.lane, x.state), (row.timer or row.outcome) and tonumber(x.at) or nil
end

-- The timers of executions that follow from the record alone.
local followed
function check.followed()
  if followed then return followed end
  local seen = { deadline = true, cancel_grace = true, suspension = true }
  for _, row in pairs(state.TABLE) do if row.timer then seen[row.timer] = true end end -- order-free
  followed = {}
  for kind in pairs(seen) do followed[#followed + 1] = kind end -- order-free
  table.sort(followed)
  return followed
end

-- When each of them is due: kind -> text.
function check.due(x)
  local row, due = state.TABLE[x.state], {}
  if row.timer then due[row.timer] = x.at end
  if not row.outcome then due.deadline, due.cancel_grace = x.deadline_at, x.cancel_until end
  if x.state == "suspended" then due.suspension = x.suspend_until end
  return due
end

-- ---- a record ----------------------------------------------------------------------------------------

-- I1, and whether the rest can be asked at all.
local function legible(c, x, full)
  local row = state.TABLE[x.state]
  if not row then
    check.say(c, "I1", full, "has no state this library knows: " .. tostring(x.state))
    return false
  end
  local sound = true
  for i = 1, #NUMBERS do
    local value = x[NUMBERS[i]]
    if value and not string.find(value, "^%-?%d+$") then
      check.say(c, "I1", full, NUMBERS[i] .. " is no number: " .. string.sub(value, 1, 40))
      sound = false
    end
  end
  local wanted = { "lane", "task", "created_at", "digest" }
  if row.queued then wanted[#wanted + 1] = "turn" end
  if row.leased or row.timer or row.outcome then wanted[#wanted + 1] = "at" end
  if row.leased then wanted[#wanted + 1] = "lease_id" end
  if row.timer == "grant" then wanted[#wanted + 1] = "grant" end
  for i = 1, #wanted do
    if not x[wanted[i]] then
      check.say(c, "I1", full, x.state .. " without " .. wanted[i])
      sound = false
    end
  end
  return sound
end

local function words(c, x, full)
  local row = state.TABLE[x.state]
  local reasons = REASONS[x.state]
  if reasons and not (x.reason and reasons[x.reason]) or not reasons and not row.outcome and x.reason then
    check.say(c, "I1", full, x.state .. " with reason " .. tostring(x.reason))
  end
  if not NEXT[x.next] then check.say(c, "I1", full, "its next attempt is of no known kind: " .. x.next) end
  if (x.state == "reclaimable" or x.state == "revoked") and x.next ~= "reclaim" and x.next ~= "compensation" then
    check.say(c, "I1", full, x.state .. " and its next attempt is no reclaim: " .. x.next)
  end
  if (x.reason == "waiting_for_retry_backoff") ~= (x.state == "delayed" and x.next == "retry") then
    check.say(c, "I1", full, x.state .. ", next " .. x.next .. ", with reason " .. tostring(x.reason))
  end
  if not check.is_lane(c, x.lane) then check.say(c, "I1", full, "is of lane " .. x.lane .. ", which has no name") end
  local priority = record.number(x, "priority")
  if priority < LIMITS.PRIORITY_MIN or priority > LIMITS.PRIORITY_MAX then check.say(c, "I1", full, "has priority " .. priority) end
  if row.outcome then
    for i = 1, #NOT_AFTER_THE_END do
      local name = NOT_AFTER_THE_END[i]
      if x[name] then check.say(c, name == "reason" and "I1" or "I5", full, "has ended and still has " .. name, "take " .. name .. " off its record") end
    end
  else
    if x.grant and row.timer ~= "grant" then check.say(c, "I5", full, x.state .. " and still has a grant", "take grant off its record") end
    if x.attempt_deadline_at and not row.leased then
      check.say(c, "I5", full, x.state .. " and still has attempt_deadline_at", "take attempt_deadline_at off its record")
    end
  end
  if x.suspend_until and x.state ~= "suspended" then
    check.say(c, "I5", full, x.state .. " and still has suspend_until", "take suspend_until off its record")
  end
  if x.paused and state.stays_out(x, x.state) then check.say(c, "I1", full, "is paused and still " .. x.state) end
  if not x.more then
    local rare, said = {}, { id = x.id, key = x.key, next = "initial", attempt = "0", started_at = x.lease_epoch }
    for name, value in pairs(x) do -- order-free
      if record.is_rare(name) and value ~= said[name] then rare[#rare + 1] = name end
    end
    table.sort(rare)
    if rare[1] then check.say(c, "I1", full, "has " .. table.concat(rare, " ") .. " and does not say that it has rare fields", "mark its record") end
  end
  if x.policy then
    local kept
    if x.policy == "d" then kept = redis.call("HEXISTS", keys.detail(c.p, x.id), "policy")
    else kept = redis.call("HEXISTS", keys.policies(c.p), "#" .. x.policy) end
    if kept == 0 then check.say(c, "I1", full, "its policy " .. x.policy .. " is kept nowhere") end
  end
end

-- I2 to I5 from the record's end.
local function standing(c, x, full)
  local p, row, lane = c.p, state.TABLE[x.state], lanes.of(c.p, x.lane)
  local key, wanted = check.place(p, x)
  local got = tonumber(redis.call("ZSCORE", key, x.id) or nil)
  local leased = row.leased and "I4" or "I2"
  if not got then
    check.say(c, leased, full, x.state .. " and not in " .. check.object(p, key), "put it where its record says")
  elseif wanted and got ~= wanted then
    check.say(c, leased, full, string.format("stands at %.0f in %s, its record says %.0f", got, check.object(p, key), wanted), "put it where its record says")
  end
  if row.queued and x.cap and redis.call("HEXISTS", keys.caps(p, x.lane), x.cap) == 0 then
    check.say(c, "I2", full, "waits under capability set " .. x.cap .. ", which no worker can know", "put it where its record says")
  end
  if row.queued and order.class(x) ~= (x.cap or "-") and key == keys.queue(p, x.lane, order.class(x)) then
    local cap = x.cap or "-"
    local first = redis.call("ZSCORE", keys.ring(p, x.lane, cap), x.adm) or redis.call("ZSCORE", keys.shut(p, x.lane, cap), x.adm)
    if not first or tonumber(first) > order.score(lane, x) then
      check.say(c, "I2", full, "waits in a queue that no claim looks into in time", "put it where its record says")
    end
  end
  if row.queued and order.by_tenant(lane) and key == keys.queue(p, x.lane, order.class(x)) then
    local age = tonumber(redis.call("ZSCORE", order.tenant(p, lane, x), x.id) or nil)
    if age ~= order.age(lane, x) then
      check.say(c, "I2", full, "is not among its fairness key's by its age", "put it where its record says")
    end
  end
  local kinds, due, members = check.followed(), check.due(x), {}
  for i = 1, #kinds do members[i] = kinds[i] .. ":" .. x.id end
  members[#members + 1] = "unknown_task:" .. x.id
  local armed = redis.call("ZMSCORE", keys.timers(p), unpack(members))
  for i = 1, #kinds do
    local at, want = tonumber(armed[i] or nil), tonumber(due[kinds[i]] or nil)
    if at ~= want then
      check.say(c, "I5", full, x.state .. ", timer " .. kinds[i] .. " is " .. (at and string.format("due at %.0f", at) or "not set") .. ", the record says "
        .. (want and string.format("%.0f", want) or "none"), "set its timers as its record says")
    end
  end
  local waits = x.state == "blocked" and x.reason == "waiting_for_capable_worker"
  local unknown = waits and redis.call("ZSCORE", keys.unknown(p), x.id)
  if (armed[#members] and true or false) ~= (unknown and true or false) then
    check.say(c, "I5", full, x.state .. ", its unknown_task timer and its place among the unknown disagree", "set its timers as its record says")
  end
end

-- I7: the closed attempts, oldest first, and the one the record is at.
local function attempts(c, x, full)
  local at = record.number(x, "attempt")
  if not x.attempt then at = -1 end
  local closed = redis.call("LRANGE", keys.attempts(c.p, x.id), 0, -1)
  local last
  for i = 1, #closed do
    local index, started, ended, how = string.match(closed[i], "^(%d+) %S+ %S* (%d+) (%d+) (%S+) .+$")
    if not index then
      check.say(c, "I7", full, "closed attempt " .. i .. " cannot be read: " .. string.sub(closed[i], 1, 80))
      return
    end
    if tonumber(ended) < tonumber(started) then check.say(c, "I7", full, "attempt " .. index .. " ended before it started") end
    if how ~= "ended_failure" and how ~= "interrupted_reclaimed" and how ~= "ended_success" and how ~= "ended_cancelled" then
      check.say(c, "I7", full, "attempt " .. index .. " ended in no known way: " .. how)
    end
    if last and tonumber(index) ~= last + 1 then check.say(c, "I7", full, "attempt " .. index .. " was closed after attempt " .. last) end
    last = tonumber(index)
  end
  if not last and #closed < LIMITS.ATTEMPTS_N then last = -1 end
  local row = state.TABLE[x.state]
  local open = row.leased or (x.next == "resumed" and not row.outcome)
  local fits = at == last + 1 or (not open and at == last)
  -- What waits for another kind of attempt than a resumed one has closed the last.
  if not open and not row.outcome and at ~= last then fits = false end
  if not fits then check.say(c, "I7", full, x.state .. " at attempt " .. at .. ", next " .. x.next .. ", the last one closed is " .. last) end
end

local function fence_of(c, x, full)
  if (x.lease_id and true or false) ~= (x.lease_epoch and true or false) then
    check.say(c, "I4", full, "has half a fence: lease " .. tostring(x.lease_id) .. ", epoch " .. tostring(x.lease_epoch))
  elseif x.lease_id then
    if record.number(x, "lease_epoch") < 1 then check.say(c, "I8", full, "has epoch " .. x.lease_epoch) end
    -- A saga's compensations are claimed as attempts of their own.
    if not x.saga_open and not x.pending_outcome and x.next ~= "compensation" then attempts(c, x, full) end
  elseif x.attempt or x.started_at then
    check.say(c, "I4", full, "has had an attempt and has no fence")
  elseif redis.call("EXISTS", keys.attempts(c.p, x.id)) == 1 then
    check.say(c, "I7", full, "has closed attempts and was never claimed")
  end
end

-- I9, I18: what the record keeps beside itself.
local function kept(c, x, full)
  local p = c.p
  if redis.call("EXISTS", keys.payload(p, x.id)) == 0 then check.say(c, "I18", full, "has no payload") end
  local beside = redis.call("EXISTS", keys.result(p, x.id)) == 1
  if x.result_kept and not beside then check.say(c, "I9", full, "its result is gone")
  elseif beside and not x.result_kept then check.say(c, "I9", full, "a result is kept that its record does not know", "drop that result") end
  -- What others work with is kept while its upstream is replayed.
  if (x.result or x.result_kept) and x.state ~= "completed" and not (x.outs and x.replays and not state.is_terminal(x.state)) then check.say(c, "I9", full, x.state .. " with a result") end
  if not x.detail and redis.call("EXISTS", keys.detail(p, x.id)) == 1 then
    check.say(c, "I18", full, "has a detail hash its record does not know of", "mark its record")
  end
  local streamed = stream.attempts(p, x.id)
  local last = streamed[#streamed] and streamed[#streamed][1]
  if last ~= x.streams then
    check.say(c, "I18", full, "emitted frames in attempt " .. tostring(last) .. " last, the record says " .. tostring(x.streams), "mark its record")
  end
  if not x.waitpoints and redis.call("EXISTS", keys.waitpoints(p, x.id)) == 1 then
    check.say(c, "I15", full, "has waitpoints its record does not know of", "mark its record")
  end
  if not x.journal and redis.call("EXISTS", keys.journal(p, x.id)) == 1 then
    check.say(c, "I22", full, "has recorded steps its record does not know of", "mark its record")
  elseif x.journal and not string.find(x.journal, "^%d+ %d+$") then
    check.say(c, "I1", full, "journal is no run and version: " .. string.sub(x.journal, 1, 40))
  end
  if state.is_terminal(x.state) and not check.is_armed(c, "lane", x.lane) then
    check.say(c, "I18", full, "has ended and nothing will ever purge lane " .. lanes.name(p, x.lane), "let retention look at its lane")
  end
end

-- I14: what it waits for, and what it has waited for.
local function waits(c, x, full)
  local p = c.p
  local key = keys.suspension(p, x.id)
  local r = redis.call("HMGET", key, "i", "c", "w", "y", "m", "s")
  local function say(detail, remedy) check.say(c, "I14", full, detail, remedy) end
  if x.state ~= "suspended" then
    if x.suspension and not r[1] then say("has waited and its suspension is gone")
    elseif r[1] and not x.suspension then say("has a suspension its record does not know of", "mark its record")
    elseif r[1] and not r[4] and not r[6] then say(x.state .. " and its suspension is not over") end
  elseif not r[1] or not x.suspension then
    say("suspended and waits for nothing that is known")
  else
    if r[4] then say("suspended and its suspension is over: " .. r[4]) end
    if not condition.read(r[2] or "") then say("its condition cannot be read") end
    local n, bytes = string.match(r[5] or "0 0", "^(%d+) (%d+)$")
    local sum = 0
    for k = 1, math.min(tonumber(n or "0"), SIGNALS_SUMMED_N) do sum = sum + redis.call("HSTRLEN", key, "m" .. k) end
    if not n or tonumber(n) <= SIGNALS_SUMMED_N and sum ~= tonumber(bytes) then say("counts signals as " .. tostring(r[5]) .. ", there are " .. sum .. " bytes") end
  end
  local listed, i = {}, 0
  for id in string.gmatch(x.state == "suspended" and r[3] or "", "%S+") do
    i = i + 1
    listed[id] = i
    if not waitpoints.load(p, x, id) then say("waits at " .. id .. ", which is no waitpoint of it") end
  end
  if not x.waitpoints then return end
  local all = waitpoints.all(p, x)
  for w = 1, #all do
    local id, row = all[w][1], all[w][2]
    if row.state == "active" and row.index ~= listed[id] then say("waitpoint " .. id .. " is active and it does not wait there") end
    if row.state == "pending" and listed[id] then say("waits at " .. id .. ", which is not active") end
  end
end

-- I20: what has happened did not happen later than now, nor out of order.
local function instants(c, x, full)
  local last = 0
  for i = 1, #PAST do
    local at = record.number(x, PAST[i])
    if at > c.p.hwm then check.say(c, "I20", full, PAST[i] .. " " .. x[PAST[i]] .. " is later than the partition's time") end
    if i <= 3 and x[PAST[i]] then
      if at < last then check.say(c, "I20", full, PAST[i] .. " " .. x[PAST[i]] .. " is before what came first") end
      last = at
    end
  end
  if state.is_terminal(x.state) then
    local at = record.number(x, "at")
    if at > c.p.hwm then check.say(c, "I20", full, "ended at " .. x.at .. ", later than the partition's time") end
    if at < last then check.say(c, "I20", full, "ended at " .. x.at .. ", before it started") end
  end
end

-- Everything about the record of an id; nil when there is none.
function check.record(c, id)
  local p = c.p
  local x = record.load_all(p, id)
  if not x then return nil end
  local full = p.id_prefix .. id
  if string.sub(p.tag, 1, 4) ~= "{fp:" then check.say(c, "I19", full, "an execution in partition " .. p.tag .. ", which holds none") end
  if legible(c, x, full) then
    words(c, x, full)
    standing(c, x, full)
    fence_of(c, x, full)
    kept(c, x, full)
    waits(c, x, full)
    instants(c, x, full)
    flow_check.record(c, x, full)
    if x.held_bytes then c.sizes[#c.sizes + 1] = { id, x.lane .. " held", tonumber(x.held_bytes) or 0 } end
    if x.size and state.is_terminal(x.state) and lanes.of(p, x.lane).bytes then c.sizes[#c.sizes + 1] = { id, x.lane, tonumber(x.size) } end
  end
  return x
end

end
