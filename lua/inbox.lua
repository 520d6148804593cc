-- inbox.lua -- take what another partition owes.

-- Rows of one sender. A row without a name is a wake: it may be lost, so it may come twice, and its handler minds
-- neither. Rows of a kind that this release does not know are left owed, for one that does.
define {
  name    = "ff_deliver",
  args    = { "source:str", "items:rows(row:str,kind:str,body:str)" },
  returns = { "delivered" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not string.find(a.source, "^{%l+:%d+}$") or #a.source > 24 then return reply.reject("invalid_input", "source") end
    local befores, numbers = {}, {}
    for i = 1, #a.items do
      local row = a.items[i].row
      if row ~= "" then
        local target, before, number = outbox.parts(row)
        if target ~= p.tag then return reply.reject("invalid_input", "row " .. string.sub(row, 1, 60)) end
        befores[i], numbers[i] = tonumber(before), tonumber(number)
      end
    end
    local box, known, left = nil, 0, {}
    for i = 1, #a.items do
      local item, number = a.items[i], numbers[i]
      local handler = inbox.handler(item.kind, item.body)
      if number and not box then box = inbox.open(p, a.source) end
      if number and inbox.is_known(box, number) then
        known = known + 1
      elseif not handler then
        if number then left[#left + 1] = { item.row } end
      else
        handler(p, item.body, a.source)
        if number then inbox.applied(box, befores[i], number) end
      end
    end
    if known > 0 then p.replays_n = p.replays_n + 1 end   -- whoever waits for copies waits for the first one's, too
    if box then inbox.close(p, box) end
    for i = 1, #inbox.closers do inbox.closers[i](p) end
    local wakes, owed = {}, p.owed or {}
    for i = 1, #owed do wakes[i] = { owed[i][2], owed[i][3], owed[i][4] } end
    return { "delivered", known, wakes, left }
  end,
}

-- Queues that were refused long ago and that nothing has woken since: their halts have ended by themselves.
reap.on("waiting", function(p, id) return waiting.sweep(p, id) end)
