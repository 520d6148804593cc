-- shared/holds.lua -- the kill switch: work of one task, or with one tag, does not start.
--
-- A hold is a row of the partition, checked on the popped job; the job is blocked and the claim goes on.

local holds = {}

-- Why this record may not start, or nil.
function holds.of(p, x)
  local seen = p.hold_rows
  if not seen then
    seen = {}
    local flat = redis.call("HGETALL", keys.holds(p))
    for i = 1, #flat, 2 do seen[flat[i]] = true end
    p.hold_rows = seen
  end
  if seen["task:" .. x.task] then return "held task:" .. x.task end
  local tags = record.tags(p, x)
  for i = 1, #tags, 2 do
    local name = "tag:" .. tags[i] .. "=" .. tags[i + 1]
    if seen[name] then return "held " .. names.cut(name, 200) end
  end
end
