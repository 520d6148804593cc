-- waitpoint.lua -- open a waitpoint before anybody is told of it, close one, list those that are open.

due.on("waitpoint", waitpoints.expire)

-- What the journal knows of a gate that was opened under this key; nil: nothing yet. A refusal comes second.
local function recorded(p, x, step)
  local entry = step and journal.find(p, x, step)
  if not entry then return nil end
  local _, kind, status, _, _, _, value = journal.unpack(entry)
  local texts = kind == "gate" and status == "ok" and waitpoints.unpack(value, 3)
  if not texts then return nil, reply.reject("invalid_input", "the step of this key is a " .. tostring(kind) .. ", not a gate") end
  return texts
end

-- Open a waitpoint under the caller's lease. With a step key the journal has it in the same call, and a re-run is answered
-- what was recorded; without one, the same id and key again are answered as they stand.
define {
  name    = "ff_create_pending_waitpoint",
  args    = { "execution_id:id", "fence:fence", "waitpoint_id:str", "waitpoint_key:str", "expires_in_ms:int?", "kid:str?", "token_digest:str?",
              "step:str?", "step_name:str?", "version:int" },
  returns = { "created" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "invalid_input", "invalid_waitpoint_key",
              "invalid_kid", "waitpoint_already_exists", "waitpoint_limit_exceeded", "journal_full" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence)
    if refusal then return refusal end
    if a.version < 1 or a.version > LIMITS.VERSION_MAX then return reply.reject("invalid_input", "version") end
    local there
    if a.step then
      refusal = journal.check(a.step, "gate", "ok", a.step_name or "", "")
      if refusal then return refusal end
      there, refusal = recorded(p, x, a.step)
      if refusal then return refusal end
      if there then
        fence.heard(p, x)
        fence.replayed(p)
        return { "created", there[1], there[2], there[3], 1 }
      end
    end
    local spec = { id = a.waitpoint_id, key = a.waitpoint_key, expires_in_ms = a.expires_in_ms, kid = a.kid, digest = a.token_digest }
    refusal = waitpoints.refuse_open(p, x, { spec })
    if refusal then return refusal end
    local value = waitpoints.text(a.waitpoint_id) .. waitpoints.text(a.waitpoint_key) .. waitpoints.text(a.kid or "")
    refusal = a.step and journal.room(p, x, #a.step + #a.step_name + #value + 64)
    if refusal then return refusal end
    local known = waitpoints.load(p, x, a.waitpoint_id)
    fence.heard(p, x)
    if known and not a.step then
      fence.replayed(p)
      return { "created", a.waitpoint_id, known.key, known.kid or "", 1 }
    end
    if not known then waitpoints.open(p, x, spec) end
    if a.step then journal.put(p, x, a.step, "gate", "ok", a.step_name, value, a.version) end
    return { "created", a.waitpoint_id, a.waitpoint_key, a.kid or "", 0 }
  end,
}

-- An operator's hand, or a handler that is done with it. Closed already is closed.
define {
  name    = "ff_close_waitpoint",
  args    = { "at:id", "waitpoint_id:str", "reason:str" },
  returns = { "closed" },
  errors  = { "execution_not_found", "waitpoint_not_found", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.at)
    if not x then return reply.reject("execution_not_found") end
    local row = waitpoints.load(p, x, a.waitpoint_id)
    if not row then return reply.reject("waitpoint_not_found", string.sub(a.waitpoint_id, 1, 64)) end
    -- "ended" is the end's own word: a replay opens those again.
    if a.reason == "" or a.reason == "ended" or #a.reason > LIMITS.NAME_BYTES or string.find(a.reason, "%c") then
      return reply.reject("invalid_input", "reason")
    end
    if waitpoints.close(p, x, a.waitpoint_id, waitpoints.word(a.reason)) then
      events.add(p, x, x.state, x.state, "waitpoint_closed " .. a.waitpoint_id .. " " .. a.reason)
    else
      fence.replayed(p)
    end
    return { "closed" }
  end,
}

-- The open waitpoints of an execution by id. What is shown opens nothing: the kid, and a quarter of the token's digest.
define {
  name    = "ff_list_pending_waitpoints",
  args    = { "execution_id:id", "after:str?", "limit:int?" },
  returns = { "waitpoints" },   -- entries, where the next page begins ("": there is none)
  errors  = { "execution_not_found", "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    local limit = a.limit or LIMITS.PAGE_N
    if limit < 1 or limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    local all, out, next_id = waitpoints.all(p, x), {}, ""
    local tree = x.state == "suspended" and condition.read(redis.call("HGET", keys.suspension(p, x.id), "c") or "")
    for i = 1, #all do
      local id, row = all[i][1], all[i][2]
      if row.state ~= "closed" and (not a.after or id > a.after) then
        if #out == limit then
          next_id = out[limit][1]
          break
        end
        local wanted = tree and row.index and condition.names(tree, row.index) or {}
        out[#out + 1] = { id, row.key, row.state, wanted, tonumber(row.created), tonumber(row.activated) or "", row.expires or "", p.id_prefix .. x.id, row.kid or "",
          string.sub(row.digest or "", 1, 16) }
      end
    end
    return { "waitpoints", out, next_id }
  end,
}
