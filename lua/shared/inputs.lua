-- shared/inputs.lua -- what a member without a payload of its own works on: what its upstreams returned.

local inputs = {}
do -- a chunk may hold 200 locals

-- What an upstream returned: encoding and bytes (false: null). nil where it did not complete; one that runs again has what
-- it returned before.
local function result_of(p, id)
  local r = redis.call("HMGET", keys.core(p, id), "s", "rs", "r", "re")
  if r[1] ~= "completed" and not r[2] and not r[3] then return nil end
  return { r[4] or "", r[2] or r[3] and redis.call("GET", keys.result(p, id)) or false }
end

-- What a member without a payload of its own works on (ffcore/contracts/batch.py, Inputs), and its bytes: what upstreams
-- returned whose edges were satisfied in time, in their order. One that did not complete is nothing, where all are awaited.
function inputs.of(p, x)
  if x.inputs == "1" then
    local flat = redis.call("HGETALL", keys.incoming(p, x.id))
    if #flat == 4 then
      -- The way of every chain: its group, and one row.
      local at = #flat[1] == 36 and 1 or 3
      if string.find(flat[at + 1], "^%d+ %a S ") then
        local item = result_of(p, flat[at])
        local size = item and item[2] and #item[2] or 0
        if size > LIMITS.INPUTS_BYTES then return { "1", 0, {} }, 0 end
        if item or string.byte(flat[5 - at]) == 65 then return { "1", 1, { item or false } }, size end
      end
    end
  end
  local rows, rest = graph.rows(p, x.id)
  local g, items, bytes, complete = graph.read_group(rest.g), {}, 0, 1
  for i = 1, #rows do
    if rows[i].kind ~= "c" and rows[i].state == "S" then
      if #items >= LIMITS.INPUTS_N or bytes > LIMITS.INPUTS_BYTES then
        complete = 0
        break
      end
      local item = result_of(p, rows[i].up)
      if item then
        items[#items + 1] = item
        bytes = bytes + (item[2] and #item[2] or 0)
      elseif g and g.policy == "A" then
        items[#items + 1] = false
      end
    end
  end
  if bytes > LIMITS.INPUTS_BYTES then items, bytes, complete = {}, 0, 0 end
  return { x.inputs, complete, items }, bytes
end

end
