-- shared/submission.lua -- how an execution comes to be, for every function that makes some.
--
-- An id is minted by the client and taken while its record or its tombstone exists, so every create may be sent again:
-- same digest, the execution that exists; another digest, a conflict. What executions of one call share (names, policy,
-- times) is a plan: looked at once, opened once, written with each.

local submission = {}
do -- a chunk may hold 200 locals: what only this file uses is in a block of its own

local function check_names(p, a)
  if string.sub(p.tag, 1, 4) ~= "{fp:" then return reply.reject("invalid_input", "partition") end
  if not names.is_lane(a.lane_id) then return reply.reject("invalid_input", "lane_id") end
  if not names.is_name(a.execution_kind) then return reply.reject("invalid_input", "execution_kind") end
  if not names.is_name(a.namespace) then return reply.reject("invalid_input", "namespace") end
  if a.priority < LIMITS.PRIORITY_MIN or a.priority > LIMITS.PRIORITY_MAX then return reply.reject("invalid_input", "priority") end
  if #a.creator_identity > LIMITS.KEY_BYTES then return reply.reject("invalid_input", "creator_identity") end
  if a.version < 1 or a.version > LIMITS.VERSION_MAX then return reply.reject("invalid_input", "version") end
  if a.payload_encoding and #a.payload_encoding > LIMITS.NAME_BYTES then return reply.reject("invalid_input", "payload_encoding") end
end

-- A digest stands in the record and in the tombstone: 16 bytes of ours, and never more than twice that.
function submission.bad_digest(digest) return digest == "" or #digest > LIMITS.DIGEST_BYTES end

-- What an execution must be admitted by: the lines given with it, and the budgets its policy names. Answers what
-- shared/admission.lua makes of them, nil when there are none; false and what is wrong when they cannot be read.
function submission.admission(plan, text)
  if not text and not plan.budgets then return nil end
  return admission.read(plan, text)
end

-- What is the same for every execution of a call: names, policy, times. A refusal, or the plan. `a` has the arguments of
-- ff_create_many but its items.
function submission.plan(p, a)
  local refusal = check_names(p, a)
  if refusal then return refusal end
  local plan = { p = p, priority = a.priority, due = a.delay_until, deadline = a.execution_deadline_at }
  if a.policy then
    local pol = policy.decode(a.policy)
    if not pol then return reply.reject("invalid_policy_json", "an object with the fields of ExecutionPolicy, each within its bounds") end
    plan.tokens = policy.field(policy.field(pol, "routing_requirements"), "required_capabilities")
    if plan.tokens then
      if type(plan.tokens) ~= "table" or #plan.tokens > LIMITS.CAPABILITIES_N then return reply.reject("invalid_capabilities", "required") end
      for i = 1, #plan.tokens do
        if type(plan.tokens[i]) ~= "string" or plan.tokens[i] == "" or string.find(plan.tokens[i], "[,%c%s]") then
          return reply.reject("invalid_capabilities", "token " .. i)
        end
      end
      if #table.concat(plan.tokens, ",") > LIMITS.CAPABILITIES_BYTES then return reply.reject("invalid_capabilities", "too many bytes") end
    end
    if plan.priority == 0 then plan.priority = policy.field(pol, "priority") or 0 end
    plan.due = plan.due or policy.field(pol, "delay_until")
    plan.signals_n = policy.field(pol, "max_signals_per_execution")
    plan.deadline_ms = policy.field(policy.field(pol, "timeout_policy"), "execution_deadline_ms")
    plan.budgets = admission.budgets(policy.field(pol, "budget_ids"))
    if plan.budgets == false then return reply.reject("invalid_policy_json", "budget_ids are at most " .. LIMITS.ADMISSIONS_N .. " ids of budgets") end
    if not plan.deadline and plan.deadline_ms then plan.deadline = p.now + plan.deadline_ms end
  end
  if plan.priority < LIMITS.PRIORITY_MIN or plan.priority > LIMITS.PRIORITY_MAX then return reply.reject("invalid_input", "priority") end
  if plan.due and (plan.due < 0 or plan.due > p.now + LIMITS.SPAN_MAX_MS) then return reply.reject("invalid_input", "delay_until") end
  if plan.deadline and (plan.deadline < 0 or plan.deadline > p.now + LIMITS.SPAN_MAX_MS) then
    return reply.reject("invalid_input", "execution_deadline_at")
  end
  if plan.deadline and not plan.deadline_ms then plan.deadline_ms = math.max(1, plan.deadline - p.now) end
  local lane = lanes.named(p, a.lane_id, false)
  if lane and (lane.state == "draining" or lane.state == "disabled") then return reply.reject("lane_closed", lane.state) end
  return nil, plan
end

-- Writes of the plan that later executions share: the lane, its capability set, the policy.
function submission.open(p, a, plan)
  local lane = lanes.named(p, a.lane_id, true)
  if not lane then return reply.reject("too_many_names", LIMITS.LANES_N .. " lanes are in use here; one that is idle for ten minutes is forgotten") end
  plan.lane = lane
  if plan.tokens and #plan.tokens > 0 then
    plan.cap = queue.capability_set(p, lane, plan.tokens)
    if not plan.cap then return reply.reject("too_many_names", "capability sets of lane " .. a.lane_id) end
  end
  if a.policy and a.policy ~= "" then
    local known = p.interned or {}   -- several plans of a call may have one policy
    p.interned = known
    known[a.policy] = known[a.policy] or policy.intern(p, a.policy) or "d"
    plan.policy = known[a.policy]
  end
end

-- Whether an id was made from a key (a version 8 uuid).
function submission.is_keyed(id) return string.byte(id, 15) == 56 end

-- What a tombstone says of an id: nil when there is none, else an answer as below.
function submission.buried(p, id, digest)
  local tomb = redis.call("HGET", keys.tombs(p, id), id)
  if not tomb then return nil end
  local until_ms, kept = string.match(tomb, "^(%d+) (.*)$")
  if tonumber(until_ms) < p.now then return nil end
  if kept ~= digest then return "idempotency_conflict" end
  fence.replayed(p)
  return "duplicate", "purged"
end

-- Does this id exist already? nil: it is free. Otherwise an answer for the caller.
function submission.existing(p, id, digest)
  local key = keys.core(p, id)
  if redis.call("EXISTS", key) == 1 then
    local known = redis.call("HMGET", key, "s", "dg")
    if known[2] and known[2] ~= digest then return "idempotency_conflict" end
    fence.replayed(p)
    return "duplicate", known[1]
  end
  if submission.is_keyed(id) then return submission.buried(p, id, digest) end
end

-- Fields that all executions of a plan share, under their stored names. One that is to wait for others first keeps
-- when it is due, for afterwards.
local function shared_fields(p, a, plan, blocked)
  local set = {}
  local rare = false
  local function also(name, value)
    if value then
      set[#set + 1] = record.short(name)
      set[#set + 1] = value
      rare = rare or record.is_rare(name)
    end
  end
  also("schema", record.SCHEMA > 1 and record.SCHEMA .. "")
  also("lane", plan.lane.no)
  also("task", a.execution_kind)
  also("created_at", record.text(p, p.now))
  plan.priority_text = plan.priority ~= 0 and tostring(plan.priority) or nil
  also("priority", plan.priority_text)
  also("cap", plan.cap)
  also("policy", plan.policy)
  also("version", a.version ~= 1 and a.version)
  also("namespace", a.namespace ~= "default" and a.namespace)
  also("payload_encoding", a.payload_encoding)
  also("deadline_at", plan.deadline and record.text(p, plan.deadline))
  also("deadline_ms", plan.deadline_ms)
  also("signals_n", plan.signals_n and plan.signals_n < LIMITS.SIGNALS_N and plan.signals_n)
  plan.later = plan.due and plan.due > p.now
  also(blocked and "due" or "at", plan.later and record.text(p, plan.due))
  also("reason", blocked and "waiting_for_children" or plan.later and "waiting_for_delay")
  also("flow", plan.flow)
  if rare then also("more", "1") end
  return set
end

-- Write one execution of a plan. Everything that could be refused has been; `stored`: its payload has been written;
-- `admits`: what submission.admission has answered.
-- The shared fields and this one's stand in one list that the next execution of the call writes over.
--
-- A member of a flow is of a plan with `flow`; `member` has what is its own: node (its number), deps, outs, inputs,
-- label, and `blocked` where it has to wait for others. Answers the word for the state it is in.
function submission.write(p, a, plan, id, payload, stored, digest, fairness_key, tags, member, admits)
  local blocked = member and member.blocked
  local set, n
  if blocked then
    if not plan.waiting then plan.waiting = shared_fields(p, a, plan, true); plan.waiting_n = #plan.waiting end
    set, n = plan.waiting, plan.waiting_n
  else
    if not plan.fields then plan.fields = shared_fields(p, a, plan, false); plan.fields_n = #plan.fields end
    set, n = plan.fields, plan.fields_n
  end
  local x = { id = id, lane = plan.lane.no, cap = plan.cap, priority = plan.priority_text, state = false, turn = false, at = false, fair = false }
  if not stored then redis.call("SET", keys.payload(p, id), payload) end
  local label = member and member.label
  if #tags > 0 or a.creator_identity ~= "" or plan.policy == "d" or label or admits then
    local text = {}
    for i = 1, #tags, 2 do
      text[#text + 1] = "t:" .. tags[i]
      text[#text + 1] = tags[i + 1]
    end
    if a.creator_identity ~= "" then text[#text + 1] = "creator"; text[#text + 1] = a.creator_identity end
    if plan.policy == "d" then text[#text + 1] = "policy"; text[#text + 1] = a.policy end
    if label then text[#text + 1] = "label"; text[#text + 1] = label end
    if admits then text[#text + 1] = "admission"; text[#text + 1] = admits.text end
    redis.call("HSET", keys.detail(p, id), unpack(text))
    set[n + 1], set[n + 2] = record.short("detail"), "1"
    n = n + 2
  end
  set[n + 1], set[n + 2] = record.short("digest"), digest
  n = n + 2
  if fairness_key then
    x.fair = string.sub(redis.sha1hex(fairness_key), 1, 12)
    set[n + 1], set[n + 2] = record.short("fair"), x.fair
    n = n + 2
  end
  if member then
    x.flow, x.more = plan.flow, "1"
    set[n + 1], set[n + 2] = record.short("node"), member.node
    n = n + 2
    if member.deps then set[n + 1], set[n + 2] = record.short("deps"), "1"; n = n + 2 end
    if member.outs then set[n + 1], set[n + 2] = record.short("outs"), "1"; n = n + 2 end
    if member.inputs then set[n + 1], set[n + 2] = record.short("inputs"), member.inputs; n = n + 2 end
  end
  if admits then
    x.adm, x.unique = admits.adm, admits.unique
    if x.adm then set[n + 1], set[n + 2] = record.short("adm"), x.adm; n = n + 2 end
    if x.unique then set[n + 1], set[n + 2] = record.short("unique"), x.unique; n = n + 2 end
    -- Shared fields may have said so already: the same word twice in one HSET is that word.
    if x.adm or x.unique then set[n + 1], set[n + 2], x.more = record.short("more"), "1", "1"; n = n + 2 end
  end
  local held = plan.lane.most and lanes.hold_bytes(p, plan.lane, #payload)
  if held then
    set[n + 1], set[n + 2], set[n + 3], set[n + 4] = record.short("held_bytes"), held, record.short("more"), "1"
    n, x.held_bytes, x.more = n + 4, held, "1"
  end
  if plan.deadline then timers.set(p, "deadline", id, plan.deadline) end
  if blocked then
    state.create(p, x, "blocked", set, n)
    return "blocked"
  end
  if plan.later then
    x.at = record.text(p, plan.due)
    state.create(p, x, "delayed", set, n)
    return "delayed"
  end
  x.turn = queue.turn(p, x, true)
  set[n + 1], set[n + 2] = record.short("turn"), x.turn
  state.create(p, x, "ready", set, n + 2)
  return "waiting"
end
end
