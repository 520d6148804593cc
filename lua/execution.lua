-- execution.lua -- create one execution, or many of one task (shared/submission.lua says how one comes to be).

define {
  name    = "ff_create_execution",
  args    = { "execution_id:id", "namespace:str", "lane_id:str", "execution_kind:str", "input_payload:blob", "payload_encoding:str?",
              "priority:int", "creator_identity:str", "tags:blob", "policy:str?", "delay_until:int?", "execution_deadline_at:int?",
              "digest:blob", "version:int", "fairness_key:str?", "admission:str?" },
  returns = { "created", "duplicate" },
  errors  = { "invalid_input", "invalid_tag_key", "invalid_policy_json", "invalid_capabilities", "payload_too_large",
              "idempotency_conflict", "lane_closed", "too_many_names", "store_full", "lane_full" },
  flags   = {},   -- refused over maxmemory: it admits new work
  run = function(p, a)
    local refusal, plan = submission.plan(p, a)
    local known = submission.existing(p, a.execution_id, a.digest)
    if known == "duplicate" then return { "duplicate", p.id_prefix .. a.execution_id } end
    if known then return reply.reject(known, p.id_prefix .. a.execution_id) end
    refusal = refusal or partition.full(p)
    if refusal then return refusal end
    if submission.bad_digest(a.digest) then return reply.reject("invalid_input", "digest") end
    if #a.input_payload > LIMITS.PAYLOAD_BYTES then return reply.reject("payload_too_large", #a.input_payload) end
    local tags = names.unpack_pairs(a.tags)
    if not tags then return reply.reject("invalid_input", "tags") end
    local admits, wrong = submission.admission(plan, a.admission)
    if wrong then return reply.reject("invalid_input", wrong) end
    refusal = names.check_tags(tags) or submission.open(p, a, plan) or lanes.full(p, plan.lane, 1, #a.input_payload)
    if refusal then return refusal end
    local public = submission.write(p, a, plan, a.execution_id, a.input_payload, false, a.digest, a.fairness_key, tags, nil, admits)
    return { "created", p.id_prefix .. a.execution_id, public }
  end,
}

local NO_TAGS, CREATED = {}, { waiting = { "created", "waiting" }, delayed = { "created", "delayed" } }

-- Up to ROWS_N executions of one task in one partition; each is answered on its own.
define {
  name    = "ff_create_many",
  args    = { "namespace:str", "lane_id:str", "execution_kind:str", "version:int", "payload_encoding:str?", "priority:int",
              "creator_identity:str", "policy:str?", "delay_until:int?", "execution_deadline_at:int?",
              "items:rows(execution_id:id,digest:blob,payload:blob,fairness_key:str?,tags:blob?,admission:str?)" },
  returns = { "created_many" },
  errors  = {},   -- every refusal is an item's
  flags   = {},
  run = function(p, a)
    local unfit, plan = submission.plan(p, a)
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
      local admits, wrong
      if not unfit and (row.admission or plan.budgets) then admits, wrong = submission.admission(plan, row.admission) end
      if row.bad or wrong or not tags or submission.bad_digest(row.digest) then known = "invalid_input"
      elseif bad_tags then known = bad_tags[2]
      elseif #row.payload > LIMITS.PAYLOAD_BYTES then known = "payload_too_large"
      else
        -- A payload is there as long as its record. Once the plan stands, writing it says whether the id is free; an
        -- id made from a key may be taken by a tombstone as well.
        stored = opened and not unfit and not plan.lane.most and not submission.is_keyed(row.execution_id)
          and redis.call("SET", keys.payload(p, row.execution_id), row.payload, "NX")
        if not stored then known, public = submission.existing(p, row.execution_id, row.digest) end
      end
      if not known and not unfit and not opened then
        unfit, opened = submission.open(p, a, plan), true
      end
      if not known and not unfit and plan.lane.most then
        local full = lanes.full(p, plan.lane, 1, #row.payload)
        known = full and full[2]
      end
      if known == "duplicate" then
        items[i] = { "duplicate", public }
      elseif known or unfit then
        items[i] = { "error", known or unfit[2] }
      else
        items[i] = CREATED[submission.write(p, a, plan, row.execution_id, row.payload, stored, row.digest, row.fairness_key, tags, nil, admits)]
      end
    end
    return { "created_many", items }
  end,
}
