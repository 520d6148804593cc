-- admission.lua -- what becomes of a job that a budget or a quota refused; what its partition hears of them later.
--
-- The refusal of one job halts its admission set: its queue is out of every claim's way until an instant, or until a
-- release of what refused it is heard of. Budgets and quotas are in partitions of their own (budget.lua, quota.lua).

local DAY_MS = 24 * 3600 * 1000

-- What a refused job's set is called, and where its queue is. nil: nothing that could be halted.
local function halted_set(x, row)
  local uuid = string.match(row.resource, ":(%x[%x%-]+)$")
  if row.kind == "l" or row.resource == x.lane_quota then return "lane:" .. uuid, x.lane .. ":-", "l", uuid end
  if x.adm and not x.pending_outcome then return x.adm, x.lane .. ":" .. (x.cap or "-"), row.kind, uuid end
end

-- Back to its place, the attempt not used up; what had admitted it takes that back. A start stays one: of a job that was
-- refused by what its handler spent only its places are free.
local function refuse(p, x, row)
  local adm, place, kind, uuid = halted_set(x, row)
  if row.halt and adm and not admission.has_passed(p, uuid, row.gen) then
    local until_ms = math.min(math.max(row.until_ms, p.now + 1), p.now + DAY_MS)
    admission.stop(p, adm, until_ms, kind, uuid, row.detail, place)
  end
  x.undo = not row.ran
  state.move(p, x, "ready", "refused", "turn", queue.turn(p, x, false), "attempt_deadline_at", false, "unseen", false,
    "ended_by", "unclaim", "moved_at", p.now, attempt.unbegin(p, x))
end

-- Jobs that a budget (kind b), a quota (q) or their lane's quota (l) did not admit. `gen`: the number of
-- the next release; with `halt` nothing of the same set starts before `until_ms`, unless that has been heard of. `ran`: its
-- handler had started.
define {
  name    = "ff_refuse_many",
  args    = { "items:rows(execution_id:id,fence:fence,resource:str,kind:str,gen:int,until_ms:int,detail:str,halt:bool,ran:bool)" },
  returns = { "refused_many" },
  errors  = {},   -- every refusal is an item's
  flags   = { "allow-oom" },
  run = function(p, a)
    local items = {}
    for i = 1, #a.items do
      local row = a.items[i]
      if row.bad or not (row.kind == "b" or row.kind == "q" or row.kind == "l") or not admission.is_resource(row.resource) then
        items[i] = { "error", "invalid_input" }
      else
        local x = record.load(p, row.execution_id)
        local refusal = fence.check(p, x, row.fence, "unclaim")
        if refusal == "replay" then
          fence.replayed(p)
          items[i] = { "replayed", x.state }
        elseif refusal then
          items[i] = { "error", refusal[2] }
        else
          -- A cancel that was asked for is what ends it.
          if not attempt.cancelled_instead(p, x, "unclaim") then refuse(p, x, row) end
          items[i] = { "refused", x.state }
        end
      end
    end
    return { "refused_many", items }
  end,
}

due.on("halt", function(p, adm) admission.over(p, adm) end)

reap.on("halts", function(p, uuid)
  local at = admission.forget_release(p, uuid)
  if at then timers.reap(p, "halts", uuid, at) end
  return 1
end)

-- Whether an execution that a unique key is held for holds it: `key`, with its partition, under a scope. An id that is
-- taken may be one of an execution that has let go of the key long ago: of what ends sooner than its record the record says
-- whether it has ended.
local function holds(p, id, key, scope)
  if scope ~= "queued" and scope ~= "active" then
    return redis.call("EXISTS", keys.core(p, id)) == 1 or redis.call("HEXISTS", keys.tombs(p, id), id) == 1
  end
  return redis.call("HEXISTS", keys.core(p, id), record.short("unique")) == 1
    and string.find("\n" .. (redis.call("HGET", keys.detail(p, id), "admission") or ""), "\nu " .. key .. " ", 1, true) ~= nil
end

-- A budget, a quota or a unique key asks whether what it holds for an execution is still wanted.
inbox.on("verify", function(p, body)
  local from, kind, rest, id, epoch = string.match(body, "^({%l:%d+}) ([bqu]) (%S+ %S+) (%S+) (%d+)$")
  local uuid = id and string.sub(id, 1, p.id_prefix_n) == p.id_prefix and string.sub(id, p.id_prefix_n + 1)
  if not uuid or #uuid ~= 36 or string.find(uuid, "[^%x%-]") then return end
  local held
  if kind == "u" then
    local key, scope = string.match(rest, "^(%S+) (%S+)$")
    held = holds(p, uuid, from .. ":" .. key, scope)
  else
    local r = redis.call("HMGET", keys.core(p, uuid), record.short("state"), record.short("lease_epoch"))
    held = r[1] == "active" and r[2] == epoch
  end
  inbox.wake(p, from, "verified", table.concat({ kind, rest, id, epoch, held and "1" or "0" }, " "))
end)
