-- outbox.lua -- read what is owed to other partitions, and acknowledge what was delivered.

-- Rows for whoever made the call and delivers at once. Not all where there are many, and in no order across calls: what
-- is acknowledged makes room for the rest, and what nobody delivers the ticker does.
define {
  name    = "ff_read_outbox",
  args    = { "limit:int" },
  returns = { "outbox" },
  errors  = { "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.ROWS_N then return reply.reject("invalid_input", "limit") end
    local rows, cursor = {}, "0"
    repeat
      local page = redis.call("HSCAN", keys.outbox(p), cursor, "COUNT", a.limit)
      cursor = page[1]
      for i = 1, #page[2], 2 do rows[#rows + 1] = outbox.unpack(page[2][i], page[2][i + 1]) end
    until cursor == "0" or #rows >= a.limit
    local function number(row) return tonumber(string.match(row[1], "(%d+)$") or "0") end
    table.sort(rows, function(one, other)
      local n, m = number(one), number(other)
      if n ~= m then return n < m end
      return one[1] < other[1]
    end)
    for i = #rows, a.limit + 1, -1 do rows[i] = nil end
    return { "outbox", rows }
  end,
}

define {
  name    = "ff_ack_outbox",
  args    = { "items:rows(row:str)" },
  returns = { "acknowledged" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local rows = {}
    for i = 1, #a.items do
      rows[i] = a.items[i].row
      timers.clear(p, "outbox", rows[i])
    end
    if #rows == 0 then return { "acknowledged", 0 } end
    return { "acknowledged", redis.call("HDEL", keys.outbox(p), unpack(rows)) }
  end,
}

-- An undelivered row: hand it to the ticker, and look again.
due.on("outbox", function(p, row)
  local kept = redis.call("HGET", keys.outbox(p), row)
  if kept then
    p.owed = p.owed or {}
    table.insert(p.owed, outbox.unpack(row, kept))
    -- A claim runs timers too but answers no rows: it leaves them due, for the ticker.
    timers.set(p, "outbox", row, p.touched and p.now + outbox.RETRY_MS or p.now)
  end
end)
