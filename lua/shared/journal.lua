-- shared/journal.lua -- what a handler has done already: recorded steps, replayed when it runs again.
--
-- A hash per execution: `<seq>` the packed entry, `k<key>` the number of a key, `n` "<count> <bytes>" of all entries.
-- Numbers begin at 1 and have no gaps. An entry is text, so that any name and any result survives:
--   key kind status at attempt <bytes of the name>:<name><value>
-- `ok` (value: the result) and `fatal` (value: the failure) are final. `intent` (it began and must not run twice;
-- value: the epoch of the lease it began under) and `error` (it failed and will be tried again) may be replaced.
-- The record's field `journal` says that there is one: the run it began in, and the version of the task that began it.

local journal = {}

local CHUNK = 8   -- entries read at a time; one may be a megabyte

journal.KINDS = { step = true, sleep = true, gate = true, wait = true, spawn = true }
journal.STATUSES = { ok = true, fatal = true, intent = true, error = true }

-- What else an execution forgets when it begins anew with an empty journal: called with (p, x). Later chapters
-- add theirs while the library loads.
journal.at_restart = {}
function journal.on_restart(forget) journal.at_restart[#journal.at_restart + 1] = forget end

-- An entry's text.
function journal.pack(p, x, key, kind, status, name, value)
  return key .. " " .. kind .. " " .. status .. " " .. record.text(p, p.now) .. " " .. (x.attempt or "0") .. " " .. #name .. ":" .. name .. value
end

-- Key, kind, status, when, attempt, name and value of one; nil when it cannot be read.
function journal.unpack(entry)
  local key, kind, status, at, attempt_no, n, from = string.match(entry, "^([%x%.]+) (%l+) (%l+) (%d+) (%-?%d+) (%d+):()")
  if not key or from + tonumber(n) - 1 > #entry then return nil end
  return key, kind, status, at, attempt_no, string.sub(entry, from, from + tonumber(n) - 1), string.sub(entry, from + tonumber(n))
end

-- Whether an entry's words may be stored; a refusal if not.
function journal.check(key, kind, status, name, value)
  if #key > LIMITS.STEP_KEY_BYTES or not string.find(key, "^[%x%.]+$") then return reply.reject("invalid_input", "step") end
  if not journal.KINDS[kind] then return reply.reject("invalid_input", "kind") end
  if not journal.STATUSES[status] then return reply.reject("invalid_input", "status") end
  if name == "" or #name > LIMITS.NAME_BYTES or string.find(name, "%c") then return reply.reject("invalid_input", "name") end
  if #value > LIMITS.RESULT_BYTES then return reply.reject("payload_too_large", #value) end
end

-- The number of a key (nil: it is new), its entry, and how many entries of how many bytes there are.
function journal.look(p, x, key)
  if not x.journal then return nil, nil, 0, 0 end
  local r = redis.call("HMGET", keys.journal(p, x.id), "k" .. key, "n")
  local count, bytes = string.match(r[2] or "", "^(%d+) (%d+)$")
  local seq = r[1] or nil
  return seq, seq and redis.call("HGET", keys.journal(p, x.id), seq) or nil, tonumber(count or "0"), tonumber(bytes or "0")
end

function journal.find(p, x, key)
  local _, entry = journal.look(p, x, key)
  return entry
end

-- How many entries of how many bytes.
function journal.size(p, x)
  local count, bytes = string.match(x.journal and redis.call("HGET", keys.journal(p, x.id), "n") or "", "^(%d+) (%d+)$")
  return tonumber(count or "0"), tonumber(bytes or "0")
end

function journal.full(count, bytes)
  if count > LIMITS.STEPS_N then return reply.reject("journal_full", LIMITS.STEPS_N .. " steps") end
  if bytes > LIMITS.STEPS_BYTES then return reply.reject("journal_full", LIMITS.STEPS_BYTES .. " bytes") end
end

-- Whether one more entry of so many bytes has room; a refusal if not.
function journal.room(p, x, bytes)
  local count, has = journal.size(p, x)
  return journal.full(count + 1, has + bytes)
end

-- The run and the version a journal of this record begins in: a replay that goes on stays in the run it goes on with.
function journal.origin(x, version)
  return (x.journal and string.match(x.journal, "^%d+") or x.run or "0") .. " " .. string.format("%.0f", version or tonumber(x.version or "1"))
end

-- Write a packed entry where journal.look has found its place. Answers its number and, for the caller's write to the
-- record, what the field `journal` becomes with the first entry: from then on the version of the task is settled.
function journal.write(p, x, key, seq, kept, count, bytes, entry, version)
  bytes = bytes + #entry - (kept and #kept or 0)
  if seq then
    redis.call("HSET", keys.journal(p, x.id), seq, entry, "n", count .. " " .. bytes)
    return tonumber(seq)
  end
  count = count + 1
  local number = tostring(count)
  redis.call("HSET", keys.journal(p, x.id), number, entry, "k" .. key, number, "n", number .. " " .. bytes)
  return count, count == 1 and journal.origin(x, version) or nil
end

-- Record an entry: the caller has asked journal.room, unless what is recorded has happened and must not be lost.
function journal.put(p, x, key, kind, status, name, value, version)
  local seq, kept, count, bytes = journal.look(p, x, key)
  local n, began = journal.write(p, x, key, seq, kept, count, bytes, journal.pack(p, x, key, kind, status, name, value), version)
  if began then record.write(p, x, "journal", began, "unpinned", false) end
  return n
end

-- Entries from a number on, as many as `bytes` holds: { entry, ... }, and their bytes. `least`: so many in any case.
-- `mean`: how large they are. Where a few fill the page, each is read by itself: what does not fit is read for nothing.
function journal.page(p, x, from, upto, bytes, least, mean)
  local out, n, size, key = {}, 0, 0, keys.journal(p, x.id)
  local chunk = mean * CHUNK <= bytes and CHUNK or 1
  while from <= upto do
    local numbers = {}
    for seq = from, math.min(from + chunk - 1, upto) do numbers[#numbers + 1] = seq end
    local got = redis.call("HMGET", key, unpack(numbers))
    for i = 1, #numbers do
      if not got[i] or (n >= least and size + #got[i] > bytes) then return out, size end
      n, size = n + 1, size + #got[i]
      out[n] = got[i]
    end
    from = from + #numbers
  end
  return out, size
end

-- What a claim tells of it, with the first entries, or nil; and the bytes of these.
function journal.head(p, x)
  if not x.journal and not x.unpinned then return nil, 0 end
  local count, has = journal.size(p, x)
  local entries, size = journal.page(p, x, 1, count, LIMITS.JOURNAL_HEAD_BYTES, 0, has / math.max(1, count))
  return { x.journal or journal.origin(x), count, x.unpinned and 1 or 0, entries }, size
end

function journal.clear(p, x)
  if not x.journal then return end
  redis.call("UNLINK", keys.journal(p, x.id))
  record.write(p, x, "journal", false)
end

-- Nothing that was done is remembered: the next attempt begins as the first one did, with any version of its task.
function journal.restart(p, x)
  for i = 1, #journal.at_restart do journal.at_restart[i](p, x) end
  journal.clear(p, x)
  record.write(p, x, "unpinned", "1")
end

-- The third of some texts with their lengths before them: a packed failure's category (ffcore/steps.py).
local function third(packed)
  local at = 1
  for _ = 1, 2 do
    local n, from = string.match(packed, "^(%d+):()", at)
    if not n then return nil end
    at = from + tonumber(n)
  end
  local n, from = string.match(packed, "^(%d+):()", at)
  return n and string.sub(packed, from, from + tonumber(n) - 1)
end

-- A replay goes on with what was recorded. The step whose final failure ended the last run is the one that is to be
-- tried again: as a recorded failure it would end every replay at the same place.
function journal.reopen(p, x)
  if not x.journal then
    -- The keys of effects follow from the run the journal began in, also for steps that nobody could record yet.
    record.write(p, x, "journal", journal.origin(x))
    return
  end
  local category = x.detail and redis.call("HGET", keys.detail(p, x.id), "category")
  if not category then return end
  local count, bytes = journal.size(p, x)
  for seq = count, math.max(1, count - LIMITS.STEPS_REOPEN_N), -1 do
    local entry = redis.call("HGET", keys.journal(p, x.id), seq) or ""
    local key, kind, status, at, attempt_no, name, value = journal.unpack(entry)
    if status == "fatal" and third(value) == category then
      local again = table.concat({ key, kind, "error", at, attempt_no, #name .. ":" .. name }, " ") .. "1 it failed for good, and a replay tries it again"
      redis.call("HSET", keys.journal(p, x.id), seq, again, "n", count .. " " .. bytes - #entry + #again)
      return
    end
  end
end
