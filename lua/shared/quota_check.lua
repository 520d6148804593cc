-- shared/quota_check.lua -- what must be true of quotas, their subjects and unique keys.

local quota_check = {}
do -- helpers of this file; a chunk holds 200 locals

local function say(c, detail, remedy, object) check.say(c, "I16", c.p.tag, detail, remedy, object) end

local function left_over(c, key, why) say(c, check.object(c.p, key) .. " is left over: " .. why, "delete the key", check.object(c.p, key)) end

local function due_at(c, which, member) return redis.call("ZSCORE", which(c.p), member) end

local function looked_after(c, id, digest) return check.is_armed(c, "subject", id .. " " .. digest) end

local function listed(c, key, id, digest)
  if not quotas.word(c.p, id, digest) then
    say(c, check.object(c.p, key) .. " is of a key that is not listed", "", check.object(c.p, key))
  end
end

function quota_check.quota(c, key, id)
  local p = c.p
  local r = redis.call("HMGET", key, "name", "ns", "window", "rate", "most", "created", "gen")
  for i = 3, 7 do
    if not r[i] or not string.find(r[i], "^%d+$") then return say(c, "quota " .. id .. " cannot be read", "", check.object(p, key)) end
  end
  if not redis.call("ZSCORE", keys.quotas(p), id) then
    say(c, "quota " .. id .. " is on no list", "put it on the list", check.object(p, keys.quotas(p), id))
  end
end

function quota_check.on_list(c, key, id)
  if redis.call("EXISTS", keys.quota(c.p, id)) == 0 then
    say(c, "quota " .. id .. " is on the list and gone", "drop the member", check.object(c.p, key, id))
  end
end

function quota_check.window(c, key, id, digest)
  listed(c, key, id, digest)
  if not looked_after(c, id, digest) then
    say(c, check.object(c.p, key) .. " is kept and nothing will ever look at it again", "look at it",
      check.object(c.p, keys.reap(c.p), "subject:" .. id .. " " .. digest))
  end
end

function quota_check.started(c, key, start)
  if not string.find(start, "^%x+%-%x+%-%x+%-%x+%-%x+%.%d+$") then
    say(c, "a start that cannot be read: " .. string.sub(start, 1, 60), "drop the member", check.object(c.p, key, start))
  end
end

function quota_check.running(c, key, id, digest) listed(c, key, id, digest) end

-- A place is of an execution, under a lease, and is looked at again.
function quota_check.placed(c, key, execution_id, epoch)
  local p = c.p
  if not quotas.is_execution(execution_id) or not string.find(epoch, "^%d+$") then
    return say(c, "a place that cannot be read: " .. string.sub(execution_id, 1, 60), "drop the member", check.object(p, key, execution_id))
  end
  local id, digest = string.match(key, ":(%x[%x%-]+):([%x%-]+)$")
  local member = "place:" .. id .. " " .. digest .. " " .. execution_id
  if not due_at(c, keys.timers, member) then
    say(c, "the place of " .. execution_id .. " is never looked at", "set its timer", check.object(p, keys.timers(p), member))
  end
end

function quota_check.refused(c, key, id, digest)
  listed(c, key, id, digest)
  local name = id .. " " .. digest
  if not looked_after(c, id, digest) and not due_at(c, keys.timers, "freed:" .. name)
    and redis.call("EXISTS", keys.running(c.p, id, digest)) == 0 and redis.call("EXISTS", keys.quota(c.p, id)) == 1 then
    say(c, check.object(c.p, key) .. " is kept and nothing will ever look at it again", "look at it",
      check.object(c.p, keys.reap(c.p), "subject:" .. name))
  end
end

function quota_check.waits(c, key, queue)
  local partition, adm = string.match(queue, "^(%S+) (%S+)$")
  if not partition or not quotas.is_queue(partition, adm) then
    say(c, "a queue that cannot be read: " .. string.sub(queue, 1, 60), "drop the member", check.object(c.p, key, queue))
  end
end

-- Keys that are listed are their words' digests, and there is something of them.
function quota_check.subject(c, key, member)
  local p, id = c.p, string.sub(key, -36)
  local digest, word = string.match(member, "^(%S+) (%S+)$")
  if not digest or quotas.digest(word) ~= digest then
    say(c, "key " .. string.sub(member, 1, 60) .. " is listed under another's digest", "drop the member", check.object(p, key, member))
  elseif redis.call("EXISTS", keys.window(p, id, digest), keys.running(p, id, digest), keys.refused(p, id, digest)) == 0 then
    say(c, "key " .. string.sub(word, 1, 60) .. " is listed and there is nothing of it", "drop the member", check.object(p, key, member))
  end
end

function quota_check.unique(c, key, id)
  local p = c.p
  local r = redis.call("HMGET", key, "holder", "scope", "taken", "until", "seen")
  if not r[1] or not quotas.is_execution(r[1]) or not r[2] or not string.find(r[3] or "", "^%d+$") or not string.find(r[4] or "", "^%d+$") then
    return left_over(c, key, "it cannot be read")
  end
  local timer, over = "unique:" .. id, tonumber(r[4]) > 0
  if r[5] ~= "1" and not due_at(c, keys.timers, timer) then
    say(c, "unique key " .. id .. ": nobody will ask for its holder", "set its timer", check.object(p, keys.timers(p), timer))
  end
  if over and not check.is_armed(c, "unique", id) then
    say(c, "unique key " .. id .. ": nothing will end its window", "look at it", check.object(p, keys.reap(p), timer))
  end
end

-- A timer of these kinds; false when it is of another.
function quota_check.timer(c, kind, id, object)
  local p = c.p
  if kind == "place" then
    local quota, digest, execution_id = string.match(id, "^(%S+) (%S+) (%S+)$")
    if not quota or redis.call("HEXISTS", keys.running(p, quota, digest), execution_id) == 0 then
      say(c, "timer of a place that nobody holds: " .. string.sub(id, 1, 120), "drop the member", object)
    end
  elseif kind == "unique" then
    if redis.call("HGET", keys.unique(p, id), "seen") ~= "0" then
      say(c, "timer of a unique key that nobody need ask for: " .. id, "drop the member", object)
    end
  elseif kind ~= "quota" and kind ~= "freed" then return false end
  return true
end

-- What an entry of the reap set, or a timer, that is wanted and missing would look after, if it is still there.
quota_check.WATCHED = {
  subject = function(p, name)
    local id, digest = string.match(name, "^(%S+) (%S+)$")
    return id and redis.call("EXISTS", keys.window(p, id, digest), keys.refused(p, id, digest)) > 0
  end,
  unique = function(p, id) return tonumber(redis.call("HGET", keys.unique(p, id), "until") or "0") > 0 end,
}
quota_check.ASKED = {
  unique = function(p, id) return redis.call("HGET", keys.unique(p, id), "seen") == "0" end,
  place = function(p, name)
    local id, digest, execution_id = string.match(name, "^(%S+) (%S+) (%S+)$")
    return id and redis.call("HEXISTS", keys.running(p, id, digest), execution_id) == 1
  end,
}

end
