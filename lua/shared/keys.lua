-- shared/keys.lua -- every key name and channel, from the partition's prefix; nowhere else.
--
-- All carry the partition's hash tag. Parts are uuids, lane numbers, state words and digests: user text
-- never becomes part of a key.

local keys = {}

-- The partition's header, and the key beside it that never exists.
function keys.tag_of(header) return string.match(header, "^ff:({%a+:%d+})$") end
function keys.absent(header) return header .. ":absent" end

function keys.core(p, id)      return p.key .. ":x:" .. id end   -- hash: the record
function keys.payload(p, id)   return p.key .. ":p:" .. id end   -- string: opaque bytes
function keys.result(p, id)    return p.key .. ":r:" .. id end   -- string: opaque bytes
function keys.detail(p, id)    return p.key .. ":d:" .. id end   -- hash: tags and free text
function keys.attempts(p, id)  return p.key .. ":a:" .. id end   -- list: attempts that did not end it
function keys.waiters(p, id)   return p.key .. ":w:" .. id end   -- zset: clients beyond the first, until
function keys.journal(p, id)   return p.key .. ":j:" .. id end   -- hash: recorded steps by number, and their numbers by key
function keys.suspension(p, id) return p.key .. ":s:" .. id end  -- hash: what it waits for, or last waited for
function keys.waitpoints(p, id) return p.key .. ":g:" .. id end  -- hash: where signals arrive, by waitpoint
function keys.signals(p, id)   return p.key .. ":m:" .. id end   -- hash: signals kept by number, and what their keys were answered
function keys.stream(p, id, attempt) return p.key .. ":t:" .. id .. ":" .. attempt end -- stream: frames of one attempt
function keys.live(p, id, attempt) return p.key .. ":b:" .. id .. ":" .. attempt end -- stream: frames of one attempt for whoever looks now
function keys.frames(p, id)    return p.key .. ":n:" .. id end   -- hash: how far its streams are, and which attempts have some
function keys.summary(p, id)   return p.key .. ":y:" .. id end   -- hash: the summary document and its version
function keys.queue(p, lane, class) return p.key .. ":q:" .. lane .. ":" .. class end   -- zset: ready, by band and turn; class: capability set, and behind a dot the admission set
function keys.before(p, lane, class) return p.key .. ":o:" .. lane .. ":" .. class end   -- zset: ready, in the order the lane had before
function keys.tenant(p, lane, class, fair) return p.key .. ":k:" .. lane .. ":" .. class .. ":" .. fair end -- zset: an aged lane's ready ones of a key
function keys.index(p, lane, state) return p.key .. ":i:" .. lane .. ":" .. state end -- zset: all other states
function keys.turns(p, lane, band)  return p.key .. ":f:" .. lane .. ":" .. band end  -- zset: virtual finish by fairness key
function keys.caps(p, lane)    return p.key .. ":caps:" .. lane end  -- hash: digest -> tokens
function keys.park(p, lane, cap)    return p.key .. ":park:" .. lane .. ":" .. cap end -- zset: idle workers, until
function keys.strays(p, lane)  return p.key .. ":strays:" .. lane end -- zset: sets workers park under and no job requires, until
function keys.flow(p, id)      return p.key .. ":flow:" .. id end   -- hash: a flow's record and counters
function keys.flow_text(p, id) return p.key .. ":flowtext:" .. id end -- hash: its kind, namespace, reasons and tags
function keys.members(p, id)   return p.key .. ":members:" .. id end -- zset: a flow's executions, by number
function keys.edges(p, id)     return p.key .. ":edges:" .. id end  -- hash: ids of edges that were staged one by one
function keys.incoming(p, id)  return p.key .. ":in:" .. id end     -- hash: an execution's edges from others, and its group
function keys.outgoing(p, id)  return p.key .. ":out:" .. id end    -- list: executions that depend on it
function keys.flows(p)         return p.key .. ":flows" end      -- zset: all flows, in the order of their ids
function keys.leases(p)        return p.key .. ":leases" end     -- zset: running executions, by lease expiry
function keys.timers(p)        return p.key .. ":timers" end
function keys.reap(p)          return p.key .. ":reap" end
function keys.events(p)        return p.key .. ":ev" end
function keys.lanes(p)         return p.key .. ":lanes" end      -- hash: name -> number, #number -> name
function keys.policies(p)      return p.key .. ":policies" end   -- hash: digest -> number, #number -> json
function keys.marks(p)         return p.key .. ":marks" end      -- hash: policies in use, while that is being found out
function keys.claims(p)        return p.key .. ":claims" end     -- hash: slot -> last answer
function keys.holds(p)         return p.key .. ":holds" end      -- hash: what -> reason
function keys.held(p)          return p.key .. ":held" end       -- zset: executions held, by the release last looked at for
function keys.unknown(p)       return p.key .. ":unknown" end    -- zset: executions of a task no worker knew
function keys.outbox(p)        return p.key .. ":outbox" end     -- hash: effects owed to other partitions
function keys.inbox(p, from)   return p.key .. ":inbox:" .. string.gsub(from, "[{}:]", "") end -- zset: rows of a partition applied ahead of their turn
function keys.halts(p)         return p.key .. ":halts" end      -- hash: admission sets that may not start now: until when, why
function keys.ring(p, lane, cap)  return p.key .. ":ring:" .. lane .. ":" .. cap end -- zset: admission sets with ready jobs, by their first
function keys.shut(p, lane, cap)  return p.key .. ":shut:" .. lane .. ":" .. cap end -- zset: the same of those that are halted
function keys.aside(p, lane)   return p.key .. ":aside:" .. lane end -- zset: queues of admission sets that stand in the order the lane had before
function keys.weights(p, lane) return p.key .. ":weights:" .. lane end -- hash: fairness key -> its weight, where it is not 1
function keys.schedule(p, id)  return p.key .. ":sched:" .. id end -- hash: a schedule: when, and what it submits
function keys.schedule_text(p, id) return p.key .. ":schedtext:" .. id end -- string: what it submits
function keys.schedules(p)     return p.key .. ":schedules" end  -- zset: schedules by their next instant
function keys.schedule_ids(p)  return p.key .. ":schedids" end   -- zset: all schedules, in the order of their ids
function keys.budget(p, id)    return p.key .. ":budget:" .. id end -- hash: a budget: limits, usage, what is reserved
function keys.budgets(p)       return p.key .. ":budgets" end    -- zset: all budgets, in the order of their ids
function keys.reserved(p, id)  return p.key .. ":res:" .. id end -- hash: execution -> epoch, until when, amounts
function keys.reports(p, id)   return p.key .. ":rep:" .. id end -- zset: digests of keys of what was reported, by when they are forgotten
function keys.spent(p, id)     return p.key .. ":spent:" .. id end -- hash: execution -> what it spent
function keys.spenders(p, id)  return p.key .. ":spenders:" .. id end -- zset: the same by their share
function keys.waiting(p, id)   return p.key .. ":waiting:" .. id end -- hash: partition and admission set -> what it waits for
function keys.quota(p, id)     return p.key .. ":quota:" .. id end -- hash: a quota: its limits
function keys.quotas(p)        return p.key .. ":quotas" end     -- zset: all quotas, in the order of their ids
function keys.window(p, id, key)  return p.key .. ":win:" .. id .. ":" .. key end -- zset: starts within the window, by instant; key "-" or a digest
function keys.running(p, id, key) return p.key .. ":run:" .. id .. ":" .. key end -- hash: executions that hold a place -> epoch of the lease
function keys.refused(p, id, key) return p.key .. ":ref:" .. id .. ":" .. key end -- zset: queues that wait for a place or, below zero, for the window, until
function keys.subjects(p, id)  return p.key .. ":subj:" .. id end -- zset: digests and keys of those with something in them
function keys.unique(p, id)    return p.key .. ":uniq:" .. id end -- hash: who holds it, how, until when
function keys.tombs(p, id)     return p.key .. ":tomb:" .. string.sub(id, -3) end -- hash: uuid -> digest and until
function keys.workers(p)       return p.key .. ":workers" end    -- zset: instance, until
function keys.worker(p, id)    return p.key .. ":worker:" .. redis.sha1hex(id) end
function keys.settings(p)      return p.key .. ":settings" end   -- hash: what -> revision, changed at, values
function keys.kids(p)          return p.key .. ":kids" end       -- hash: which secrets sign and verify tokens; never a secret
function keys.tasks(p)         return p.key .. ":tasks" end      -- hash: task name -> descriptor

function keys.worker_channel(p, name) return p.key .. ":w:" .. name end
function keys.client_channel(p, name) return p.key .. ":c:" .. name end
function keys.stream_channel(p, id)   return p.key .. ":s:" .. id end
function keys.ticker_channel(p)       return p.key .. ":tick" end
