-- shared/wake.lua -- bells for idle workers, notices for waiting clients.
--
-- A claim that found nothing parks its worker under each queue it could serve. Every job that becomes
-- claimable pops and rings one parked worker; a batch rings min(jobs, parked): a message costs its
-- receiver 10 us, so never ring everybody. Messages are hints: whoever waits also polls, slowly.

local wake = {}

-- A job became claimable in this queue.
function wake.ring(p, lane, cap)
  local set = p.bells
  if not set then
    set = { at = {}, order = {} }
    p.bells = set
  end
  local key = lane .. ":" .. cap
  if not set.at[key] then
    set.at[key] = 0
    set.order[#set.order + 1] = { key, lane, cap }
  end
  set.at[key] = set.at[key] + 1
end

-- One of those that this call made claimable is claimed by this call: nobody need be rung for it.
function wake.taken(p, lane, cap)
  local at, key = p.bells.at, lane .. ":" .. cap
  if at[key] and at[key] > 0 then at[key] = at[key] - 1 end
end

-- Tell the worker that holds a lease (cancel requests).
function wake.worker(p, name, message)
  if name ~= "" then redis.call("SPUBLISH", keys.worker_channel(p, name), message) end
end

-- Tell whoever reads an execution's frames: that some came (by the last one's id), or that its state changed: the end of
-- an attempt and the beginning of another are read off the record.
function wake.readers(p, x, message) redis.call("SPUBLISH", keys.stream_channel(p, x.id), message) end

-- An execution has ended: tell whoever awaits it. The first waiter stands in the record, others beside it.
function wake.waiters(p, x, outcome)
  if not x.waiter then return end
  local name, until_ms = string.match(x.waiter, "^(%S+) (%d+)$")
  local notices = p.notices
  if not notices then
    notices = { at = {}, order = {} }
    p.notices = notices
  end
  local function tell(client)
    if not notices.at[client] then
      notices.at[client] = {}
      notices.order[#notices.order + 1] = client
    end
    local list = notices.at[client]
    list[#list + 1] = x.id .. " " .. outcome
  end
  if name and tonumber(until_ms) >= p.now then tell(name) end
  local key = keys.waiters(p, x.id)
  local others = redis.call("ZRANGE", key, p.now, "+inf", "BYSCORE", "LIMIT", 0, LIMITS.PAGE_MAX_N)
  -- A client may stand in both places, when it moved up after the first had lapsed.
  for i = 1, #others do if others[i] ~= name or tonumber(until_ms) < p.now then tell(others[i]) end end
  if #others > 0 then redis.call("UNLINK", key) end
end

function wake.flush(p)
  local set = p.bells
  if set then
    p.bells = nil
    for i = 1, #set.order do
      local key, lane, cap = unpack(set.order[i])
      -- A worker that was killed stays parked until its time is over: a bell that nobody hears goes on to the next,
      -- over a bounded number of dead.
      local wanted, deaf = set.at[key], 0
      while wanted > 0 and deaf <= LIMITS.HEADS_N do
        local parked = redis.call("ZPOPMAX", keys.park(p, lane, cap), wanted)
        if #parked == 0 then break end
        for j = 1, #parked, 2 do
          if tonumber(parked[j + 1]) >= p.now and redis.call("SPUBLISH", keys.worker_channel(p, parked[j]), "work") > 0 then
            wanted = wanted - 1
          else
            deaf = deaf + 1
          end
        end
      end
    end
  end
  local notices = p.notices
  if notices then
    p.notices = nil
    for i = 1, #notices.order do
      local client = notices.order[i]
      redis.call("SPUBLISH", keys.client_channel(p, client), table.concat(notices.at[client], "\n"))
    end
  end
end
