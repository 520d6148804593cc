-- check.lua -- go through a partition and say what is not as docs/model.md has it, page by page, changing nothing.
--
-- A page is one atomic call: each relation is looked at from both ends in one instant, so a system that is working
-- gives no false alarm. The cursor goes through the partition's keys, the members of those that have many, then the
-- feed. What needs more than one page (the feed's chains, sums of a lane) is answered as facts for the caller.

local LIMIT_MAX = 500   -- some 5 ms

-- "k <scan cursor or -> <key>@<cursor> ...": keys to come and members begun; "e <event id>": the feed.
local function read_cursor(p, text)
  if not text then return { fresh = true, scan = "0", begun = {} } end
  local after = string.match(text, "^e (%d+%-%d+)$")
  if after then return { scan = "-", begun = {}, after = after } end
  local scan, rest = string.match(text, "^k (%S+)(.*)$")
  if not scan or not (scan == "-" or string.find(scan, "^%d+$")) then return nil end
  local begun = {}
  for name, at in string.gmatch(rest, " (%S+)@(%d+)") do
    local kind = kinds.of(p, p.key .. name)
    if not kind or not kind.member then return nil end
    begun[#begun + 1] = { key = p.key .. name, kind = kind, at = at }
  end
  return { scan = scan, begun = begun }
end

local function write_cursor(p, cursor)
  if cursor.scan == "-" and #cursor.begun == 0 then return cursor.after and "e " .. cursor.after or "" end
  local out = { "k " .. cursor.scan }
  for i = 1, #cursor.begun do out[i + 1] = check.object(p, cursor.begun[i].key) .. "@" .. cursor.begun[i].at end
  return table.concat(out, " ")
end

local function count_bytes(c, numbers)
  for i = 1, #numbers do
    local lane = lanes.of(c.p, numbers[i])
    if lane.bytes then c.bytes[#c.bytes + 1] = { numbers[i], lane.bytes } end
    local held = tonumber(lanes.noted(c.p, "z" .. numbers[i]))
    if held then c.bytes[#c.bytes + 1] = { numbers[i] .. " held", held } end
  end
end

-- I15: open waitpoints by the kid that signed their tokens, and how many were ever opened.
local function count_kids(c)
  local flat = redis.call("HGETALL", keys.kids(c.p))
  for i = 1, #flat, 2 do
    if flat[i] == "opened" or string.sub(flat[i], 1, 1) == "n" then
      c.counts[#c.counts + 1] = { flat[i] == "opened" and "" or string.sub(flat[i], 2), tonumber(flat[i + 1]) or 0 }
    end
  end
  table.sort(c.counts, function(l, r) return l[1] < r[1] end)
end

-- I6: what the header counts. Answers how many leases were gone through.
local function check_counts(c, numbers)
  local p = c.p
  local leases, sum = keys.leases(p), 0
  local held = redis.call("ZCARD", leases)
  for i = 1, #numbers do
    local lane = lanes.of(p, numbers[i])
    sum = sum + lane.active
    if lane.moving and not redis.call("ZSCORE", keys.timers(p), "order:" .. numbers[i]) then
      check.say(c, "I5", p.tag, "lane " .. lanes.name(p, numbers[i]) .. " is being ordered anew and no timer goes on with it", "set its timer",
        check.object(p, keys.timers(p), "order:" .. numbers[i]))
    end
  end
  if held <= LIMITS.PAGE_MAX_N then
    local running, members = {}, redis.call("ZRANGE", leases, 0, -1)
    for i = 1, #members do
      local x = record.load(p, members[i])
      if x and x.lane then running[x.lane] = (running[x.lane] or 0) + 1 end
    end
    for i = 1, #numbers do
      local counted, there = lanes.of(p, numbers[i]).active, running[numbers[i]] or 0
      if counted ~= there then
        check.say(c, "I6", p.tag, "lane " .. lanes.name(p, numbers[i]) .. " counts " .. counted .. " running, there are " .. there, "count again",
          check.object(p, p.key, "running " .. numbers[i]))
      end
    end
  elseif sum ~= held then
    check.say(c, "I6", p.tag, "its lanes count " .. sum .. " running, there are " .. held, "count again", check.object(p, p.key, "running"))
  end
  local there = redis.call("HLEN", keys.holds(p))
  if p.holds_n ~= there then
    check.say(c, "I6", p.tag, "counts " .. p.holds_n .. " holds, there are " .. there, "count again", check.object(p, p.key, "holds"))
  end
  return math.min(held, LIMITS.PAGE_MAX_N)
end

-- Members of a key, some at a time; at most `budget`, unless the store hands out more at once.
local function go_through(c, begun, budget)
  local count = math.max(10, math.min(budget, 100))
  local got
  if begun.kind.type == "list" then
    local list = redis.call("LRANGE", begun.key, begun.at, begun.at + count - 1)
    for i = 1, #list do begun.kind.member(c, begun.key, list[i]) end
    begun.at = #list == count and string.format("%.0f", begun.at + count) or "0"
    return #list
  end
  if begun.kind.type == "hash" then got = redis.call("HSCAN", begun.key, begun.at, "COUNT", count)
  else got = redis.call("ZSCAN", begun.key, begun.at, "COUNT", count) end
  begun.at = got[1]
  local list = got[2]
  for i = 1, #list, 2 do begun.kind.member(c, begun.key, list[i], list[i + 1]) end
  return #list / 2
end

-- What the caller remembers of a record from pass to pass.
local function remember(c, x)
  if not x.state or not x.created_at then return end
  local result = x.result and string.sub(redis.sha1hex(x.result), 1, 12)
    or x.result_kept and tostring(redis.call("STRLEN", keys.result(c.p, x.id))) or ""
  c.seen[#c.seen + 1] = { c.p.id_prefix .. x.id, x.state, record.number(x, "created_at"), record.number(x, "at"), record.number(x, "lease_epoch"),
    x.lease_id or "", record.number(x, "run"), result }
end

-- ---- the feed (I17) ----------------------------------------------------------------------------------

local legal
local function is_legal(from, to)
  if not legal then
    legal = {}
    for word, list in pairs(state.MOVES) do -- order-free
      legal[word] = {}
      for i = 1, #list do legal[word][list[i]] = true end
    end
  end
  if from == "-" then return state.TABLE[to] ~= nil end
  return from == to or (legal[from] and legal[from][to]) or false
end

local FLOW_EVENT = "^%x+%-%x+%-%x+%-%x+%-%x+ %S+ %l+ .+$"

-- Entries after a cursor: each transition is answered, the last of each execution with what its record says now.
-- Answers how many, and where to go on (nil: this was the end).
local function read_feed(c, after, budget)
  local p, looked, last, rows = c.p, 0, after, {}
  local ended = false
  while looked < budget and not ended do
    local got = redis.call("XRANGE", keys.events(p), last and "(" .. last or "-", "+", "COUNT", 1)   -- one may hold hundreds of transitions
    ended = #got < 1
    for i = 1, #got do
      local id, fields = got[i][1], got[i][2]
      if tonumber(string.match(id, "^(%d+)")) > p.hwm then check.say(c, "I20", p.tag, "event " .. id .. " is later than the partition's time") end
      for f = 1, #fields, 2 do
        if fields[f] == "e" then
          local uuid, from, to = string.match(fields[f + 1], "^(%x+%-%x+%-%x+%-%x+%-%x+) (%S+) (%S+) %d+ %-?%d* %S+ %S+ .+$")
          if not uuid or not is_legal(from, to) then
            check.say(c, "I17", uuid and p.id_prefix .. uuid or p.tag, "event " .. id .. " tells of no move there is: " .. string.sub(fields[f + 1], 1, 120))
          else
            c.events[#c.events + 1] = { id, (string.gsub(fields[f + 1], "[\128-\255]", "?")), "", 0, 0 }
            rows[uuid] = c.events[#c.events]
          end
          looked = looked + 1
        elseif fields[f] == "f" and not string.find(fields[f + 1], FLOW_EVENT) then
          check.say(c, "I17", p.tag, "event " .. id .. " tells of nothing that happens to a flow: " .. string.sub(fields[f + 1], 1, 120))
        end
      end
      last = id
      looked = looked + 1
    end
  end
  for uuid, row in pairs(rows) do -- order-free
    local now = redis.call("HMGET", keys.core(p, uuid), record.short("state"), record.short("lease_epoch"))
    row[3] = now[1] or "gone"
    row[4] = tonumber(now[2] or "0") or 0
    row[5] = now[1] == "blocked" and redis.call("ZSCORE", keys.held(p), uuid) and 1 or 0
  end
  return looked, not ended and last or nil
end

-- Ends of the feed, and whether anything was ever cut off (it is cut only when it is full).
local function feed_span(p)
  local first, last = redis.call("XRANGE", keys.events(p), "-", "+", "COUNT", 1), redis.call("XREVRANGE", keys.events(p), "+", "-", "COUNT", 1)
  return first[1] and first[1][1] or "", last[1] and last[1][1] or "", redis.call("XLEN", keys.events(p)) >= LIMITS.EVENTS_N and 1 or 0
end

define {
  name    = "ff_check",
  args    = { "cursor:str?", "limit:int", "remember:bool", "feed_after:str?" },
  returns = { "checked" },
  errors  = { "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMIT_MAX then return reply.reject("invalid_input", "limit") end
    if a.feed_after and not string.find(a.feed_after, "^%d+%-%d+$") then return reply.reject("invalid_input", "feed_after") end
    local cursor = read_cursor(p, a.cursor)
    if not cursor then return reply.reject("invalid_offset", "cursor") end
    local c = check.begin(p)
    c.seen, c.events, c.bytes, c.counts = {}, {}, {}, {}
    c.told = a.remember and remember or nil
    local first, last, full = feed_span(p)
    local left, looked = a.limit, 0
    if cursor.fresh then
      local numbers = lanes.numbers(p)
      left = left - math.floor(check_counts(c, numbers) / 4)
      count_bytes(c, numbers)
      count_kids(c)
      if last ~= "" and tonumber(string.match(last, "^(%d+)")) > p.hwm then check.say(c, "I20", p.tag, "its feed is ahead of its time") end
    end
    while left > 0 and (cursor.scan ~= "-" or #cursor.begun > 0) do
      local begun = cursor.begun[#cursor.begun]
      local n
      if begun then
        n = go_through(c, begun, left)
        if begun.at == "0" then cursor.begun[#cursor.begun] = nil end
        left = left - n - c.spent
        c.spent = 0
      else
        local count = math.max(20, math.min(left, 100))
        local got = redis.call("SCAN", cursor.scan, "MATCH", p.key .. "*", "COUNT", count)
        cursor.scan = got[1] == "0" and "-" or got[1]
        n = #got[2]
        for i = 1, n do
          local key = got[2][i]
          local kind = kinds.check(c, key)
          if kind and kind.member then cursor.begun[#cursor.begun + 1] = { key = key, kind = kind, at = "0" } end
          left = left - (kind and kind.costs or 1) - c.spent
          c.spent = 0
        end
        left = left - math.ceil(count / 10)   -- of a store that holds other partitions as well, most of it is theirs
      end
      looked = looked + n
    end
    local done = false
    if cursor.scan == "-" and #cursor.begun == 0 and left > 0 then
      local n, after = read_feed(c, cursor.after or a.feed_after, left)
      looked = looked + n
      cursor.after, done = after, after == nil
    elseif cursor.scan == "-" and #cursor.begun == 0 then
      cursor.after = a.feed_after or "0-0"
    end
    if done then
      c.bytes = {}
      count_bytes(c, lanes.numbers(p))
      c.counts = {}
      count_kids(c)
    end
    return { "checked", c.rows, done and "" or write_cursor(p, cursor), looked, c.seen, c.events, c.sizes, c.bytes,
      { p.now, p.hwm, first, last, full, LIBRARY.sha }, c.kids, c.counts, c.flow_counts, c.flow_members }
  end,
}
