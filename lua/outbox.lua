-- outbox.lua -- acknowledge what was delivered to other partitions.

define {
  name    = "ff_ack_outbox",
  args    = { "items:rows(row:str)" },
  returns = { "acknowledged" },
  errors  = {},
  flags   = { "allow-oom" },
  run = function(p, a)
    local n = 0
    for i = 1, #a.items do
      n = n + redis.call("HDEL", keys.outbox(p), a.items[i].row)
      timers.clear(p, "outbox", a.items[i].row)
    end
    return { "acknowledged", n }
  end,
}
