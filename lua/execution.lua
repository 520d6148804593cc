-- execution.lua -- how an execution comes to be: create one, create many.
--
-- An id is minted by the client and taken while its record or its tombstone exists, so every create may
-- be sent again: same digest, the execution that exists; another digest, a conflict.

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
local function bad_digest(digest) return digest == "" or #digest > LIMITS.DIGEST_BYTES end

-- What is the same for every execution of a call: names, policy, times. A refusal, or the plan.
local function plan_of(p, a)
  local refusal = check_names(p, a)
  if refusal then return refusal end
  local plan = { priority = a.priority, due = a.delay_until, deadline = a.execution_deadline_at }
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
local function open_plan(p, a, plan)
  local lane = lanes.named(p, a.lane_id, true)
  if not lane then return reply.reject("too_many_names", LIMITS.LANES_N .. " lanes are in use here; one that is idle for ten minutes is forgotten") end
  plan.lane = lane
  if plan.tokens and #plan.tokens > 0 then
    plan.cap = queue.capability_set(p, lane, plan.tokens)
    if not plan.cap then return reply.reject("too_many_names", "capability sets of lane " .. a.lane_id) end
  end
  if a.policy and a.policy ~= "" then plan.policy = policy.intern(p, a.policy) or "d" end
end

-- Whether an id was made from a key (a version 8 uuid).
local function is_keyed(id) return string.byte(id, 15) == 56 end

-- Does this id exist already? nil: it is free. Otherwise an answer for the caller.
local function existing(p, id, digest)
  local key = keys.core(p, id)
  if redis.call("EXISTS", key) == 1 then
    local known = redis.call("HMGET", key, "s", "dg")
    if known[2] and known[2] ~= digest then return "idempotency_conflict" end
    fence.replayed(p)
    return "duplicate", known[1]
  end
  if is_keyed(id) then
    local tomb = redis.call("HGET", keys.tombs(p, id), id)
    if tomb then
      local until_ms, kept = string.match(tomb, "^(%d+) (.*)$")
      if tonumber(until_ms) >= p.now then
        if kept ~= digest then return "idempotency_conflict" end
        fence.replayed(p)
        return "duplicate", "purged"
      end
    end
  end
end

-- Fields that all executions of a plan share, under their stored names.
local function shared_fields(p, a, plan)
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
  also("at", plan.later and record.text(p, plan.due))
  also("reason", plan.later and "waiting_for_delay")
  if rare then also("more", "1") end
  return set
end

-- Write one execution of a plan. Everything that could be refused has been; `stored`: its payload has been written.
-- The shared fields and this one's stand in one list that the next execution of the call writes over.
local function create(p, a, plan, id, payload, stored, digest, fairness_key, tags)
  local set = plan.fields
  if not set then
    set = shared_fields(p, a, plan)
    plan.fields, plan.fields_n = set, #set
  end
  local n = plan.fields_n
  local x = { id = id, lane = plan.lane.no, cap = plan.cap, priority = plan.priority_text, state = false, turn = false, at = false, fair = false }
  if not stored then redis.call("SET", keys.payload(p, id), payload) end
  if #tags > 0 or a.creator_identity ~= "" or plan.policy == "d" then
    local text = {}
    for i = 1, #tags, 2 do
      text[#text + 1] = "t:" .. tags[i]
      text[#text + 1] = tags[i + 1]
    end
    if a.creator_identity ~= "" then text[#text + 1] = "creator"; text[#text + 1] = a.creator_identity end
    if plan.policy == "d" then text[#text + 1] = "policy"; text[#text + 1] = a.policy end
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
  if plan.deadline then timers.set(p, "deadline", id, plan.deadline) end
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

define {
  name    = "ff_create_execution",
  args    = { "execution_id:id", "namespace:str", "lane_id:str", "execution_kind:str", "input_payload:blob", "payload_encoding:str?",
              "priority:int", "creator_identity:str", "tags:blob", "policy:str?", "delay_until:int?", "execution_deadline_at:int?",
              "digest:blob", "version:int", "fairness_key:str?" },
  returns = { "created", "duplicate" },
  errors  = { "invalid_input", "invalid_tag_key", "invalid_policy_json", "invalid_capabilities", "payload_too_large",
              "idempotency_conflict", "lane_closed", "too_many_names", "store_full" },
  flags   = {},   -- refused over maxmemory: it admits new work
  run = function(p, a)
    local refusal, plan = plan_of(p, a)
    local known = existing(p, a.execution_id, a.digest)
    if known == "duplicate" then return { "duplicate", p.id_prefix .. a.execution_id } end
    if known then return reply.reject(known, p.id_prefix .. a.execution_id) end
    refusal = refusal or partition.full(p)
    if refusal then return refusal end
    if bad_digest(a.digest) then return reply.reject("invalid_input", "digest") end
    if #a.input_payload > LIMITS.PAYLOAD_BYTES then return reply.reject("payload_too_large", #a.input_payload) end
    local tags = names.unpack_pairs(a.tags)
    if not tags then return reply.reject("invalid_input", "tags") end
    refusal = names.check_tags(tags) or open_plan(p, a, plan)
    if refusal then return refusal end
    local public = create(p, a, plan, a.execution_id, a.input_payload, false, a.digest, a.fairness_key, tags)
    return { "created", p.id_prefix .. a.execution_id, public }
  end,
}

local NO_TAGS, CREATED = {}, { waiting = { "created", "waiting" }, delayed = { "created", "delayed" } }

-- Up to ROWS_N executions of one task in one partition; each is answered on its own.
define {
  name    = "ff_create_many",
  args    = { "namespace:str", "lane_id:str", "execution_kind:str", "version:int", "payload_encoding:str?", "priority:int",
              "creator_identity:str", "policy:str?", "delay_until:int?", "execution_deadline_at:int?",
              "items:rows(execution_id:id,digest:blob,payload:blob,fairness_key:str?,tags:blob?)" },
  returns = { "created_many" },
  errors  = {},   -- every refusal is an item's
  flags   = {},
  run = function(p, a)
    local unfit, plan = plan_of(p, a)
    unfit = unfit or partition.full(p)
    local items, opened = {}, false
    for i = 1, #a.items do
      local row = a.items[i]
      local known, public, stored
      local tags, bad_tags = NO_TAGS, nil
      if row.tags then
        tags = names.unpack_pairs(row.tags)
        bad_tags = tags and names.check_tags(tags)
      end
      if row.bad or not tags or bad_digest(row.digest) then known = "invalid_input"
      elseif bad_tags then known = bad_tags[2]
      elseif #row.payload > LIMITS.PAYLOAD_BYTES then known = "payload_too_large"
      else
        -- A payload is there as long as its record. Once the plan stands, writing it says whether the id is free; an
        -- id made from a key may be taken by a tombstone as well.
        stored = opened and not unfit and not is_keyed(row.execution_id)
          and redis.call("SET", keys.payload(p, row.execution_id), row.payload, "NX")
        if not stored then known, public = existing(p, row.execution_id, row.digest) end
      end
      if not known and not unfit and not opened then
        unfit, opened = open_plan(p, a, plan), true
      end
      if known == "duplicate" then
        items[i] = { "duplicate", public }
      elseif known or unfit then
        items[i] = { "error", known or unfit[2] }
      else
        items[i] = CREATED[create(p, a, plan, row.execution_id, row.payload, stored, row.digest, row.fairness_key, tags)]
      end
    end
    return { "created_many", items }
  end,
}
