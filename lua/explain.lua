-- explain.lua -- why does this execution not run? The checks of a claim, without what a claim does.
--
-- Whatever a claim asks before it leases a job (shared/claim.lua) is asked here in the same order, and nothing is
-- written. tests/lua/test_explain.py holds the two together: what is told here is what the next claim does.

local SOURCES_N = 64   -- queues of a lane that are compared with its own

local function say(out, code, detail, until_ms, resource)
  out[#out + 1] = { code, detail, until_ms or 0, resource or "" }
end

-- Its queue may not start anything now, or its whole lane may not.
local function halted(p, x, out)
  local halt = admission.halting(p, x)
  if halt then
    local budget = halt.kind == "b"
    say(out, budget and "waiting_for_budget" or "waiting_for_quota", halt.text, halt.over_at, (budget and "b " or "q ") .. halt.uuid)
  end
end

-- What a claim that popped it would do instead of leasing it (claim.turned_away).
local function turned_away(p, x, out)
  if x.deadline_at and tonumber(x.deadline_at) <= p.now then
    say(out, "expired", "its deadline has passed: the next claim ends it", tonumber(x.deadline_at))
  end
  if x.pending_outcome then return end
  local f = x.flow and flows.load(p, x.flow)
  if f and f.policy and (f.policy == "cancel_all" or not x.started_at) then
    say(out, "flow_cancelled", f.policy == "flow_only" and "nothing more of its flow starts" or "its flow was cancelled: the next claim cancels it")
  end
  local flat, reasons = p.holds_n > 0 and redis.call("HGETALL", keys.holds(p)) or {}, {}
  for i = 1, #flat, 2 do reasons[flat[i]] = flat[i + 1] end
  local mine, tags = { "task:" .. x.task }, #flat > 0 and record.tags(p, x) or {}
  for i = 1, #tags, 2 do mine[#mine + 1] = "tag:" .. tags[i] .. "=" .. tags[i + 1] end
  for i = 1, #mine do
    local reason = reasons[mine[i]]
    if reason then say(out, "held", names.cut(mine[i], 200) .. (reason ~= "" and ": " .. reason or "")) end
  end
end

-- How many come before it: in its own queue those with an earlier place, in the others those with an earlier score.
local function position(p, lane, x)
  local own, score = queue.place(p, x)
  local ahead = redis.call("ZRANK", own, x.id)
  if not ahead then return -1 end
  local sources, bound = queue.sources(p, lane), "(" .. string.format("%.9f", score)
  for i = 1, math.min(#sources, SOURCES_N) do
    local key = sources[i][2]
    local adm = string.match(key, "%.(%x+)$")
    if key ~= own and not (adm and admission.is_halted(p, adm)) then ahead = ahead + redis.call("ZCOUNT", key, "-inf", bound) end
  end
  return ahead
end

define {
  name    = "ff_explain",
  args    = { "execution_id:id" },
  returns = { "explained" },   -- now, state, verdicts, ahead, ready, admission, quota of the lane
  errors  = { "execution_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    if not x then return reply.reject("execution_not_found", "") end
    local lane, out, ahead, ready = lanes.of(p, x.lane), {}, -1, 0
    if not state.is_terminal(x.state) and x.state ~= "active" then
      if lane.state == "paused" or lane.state == "disabled" then say(out, "lane_" .. lane.state, lanes.name(p, x.lane)) end
      halted(p, x, out)
      turned_away(p, x, out)
    end
    if state.is_queued(x.state) then
      ahead, ready = position(p, lane, x), lanes.ready(p, lane)
    end
    local text = x.detail and redis.call("HGET", keys.detail(p, x.id), "admission") or ""
    return { "explained", p.now, x.state, out, ahead, ready, text, lane.quota or "" }
  end,
}
