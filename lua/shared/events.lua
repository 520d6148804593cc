-- shared/events.lua -- the partition's feed: every transition, once, in order.
--
-- One entry per call, holding all transitions of that call; stream ids are the partition's time, so a
-- feed never runs back. One transition is one string:
--   uuid from to epoch attempt lane lease_id reason...
-- with "-" for what is empty (the lease id stands where a lease begins); only the reason may hold spaces, so it comes last.
-- What is no transition but belongs to an execution has its state twice, and says in the first word of the reason what
-- it is (signal, pause_pending, steps_unclaimed, ...): ffsdk/events.py tells kinds of subscriptions by these words.
-- From and to are the same word for what happened without a move: signals and waitpoints (signal.lua says how they read).

local events = {}

function events.add(p, x, from, to, why)
  local text = x.id .. " " .. (from or "-") .. " " .. to .. " " .. (x.lease_epoch or "0") .. " " .. (x.attempt or "-")
    .. " " .. x.lane .. " " .. (to == "active" and x.lease_id or "-") .. " " .. (why or "-")
  local list = p.event_writes
  if list then list[#list + 1], list[#list + 2] = "e", text else p.event_writes = { "e", text } end
end

-- A flow's own: it was created, has ended or goes on again. `why` may hold spaces.
function events.flow(p, fid, from, to, why)
  local list = p.event_writes or {}
  p.event_writes = list
  list[#list + 1] = "f"
  list[#list + 1] = fid .. " " .. from .. " " .. to .. " " .. why
end

-- What an operator did to the partition rather than to one execution, as text.
function events.note(p, text)
  local list = p.event_writes or {}
  p.event_writes = list
  list[#list + 1] = "o"
  list[#list + 1] = text
end

function events.flush(p)
  local list = p.event_writes
  if list then
    p.event_writes = nil
    -- One entry, unless there is more to tell than one command takes: a tick may close many waitpoints.
    for from = 1, #list, 4000 do
      redis.call("XADD", keys.events(p), "MAXLEN", "~", LIMITS.EVENTS_N, record.text(p, p.now) .. "-*", unpack(list, from, math.min(#list, from + 3999)))
    end
  end
end
