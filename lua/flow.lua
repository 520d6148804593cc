-- flow.lua -- a flow as a whole: create, grow, cancel, tag, look at.
--
-- Its counters are exact at any moment (shared/flows.lua), so its state costs one read whatever its size. A cancel is a
-- word of the flow's record, which the claim heeds from then on; members follow in pages (shared/cascade.lua).

local POLICIES = { flow_only = true, cancel_all = true, cancel_pending = true }
local PUBLIC = { open = "active", running = "active", blocked = "active", completed = "completed", failed = "failed", cancelled = "cancelled" }
local EDGES_N = 2000   -- edges one page of members carries; of a member that has more, none: its group says how many

local function not_found(p, fid)
  local tomb = redis.call("HEXISTS", keys.tombs(p, fid), fid) == 1
  return reply.reject("flow_not_found", tomb and "purged" or "")
end

-- Ids of the first members.
local function first_members(p, fid)
  local ids = redis.call("ZRANGE", keys.members(p, fid), 0, LIMITS.PAGE_MAX_N - 1)
  for i = 1, #ids do ids[i] = p.id_prefix .. ids[i] end
  return ids
end

-- An empty flow, to be grown one by one; one that never gets a member goes after a day. A key that was used for a flow
-- that is purged by now is taken still.
define {
  name    = "ff_create_flow",
  args    = { "flow_id:id", "flow_kind:str", "namespace:str" },
  returns = { "created", "already_satisfied" },
  errors  = { "invalid_input", "purging", "store_full" },
  flags   = {},   -- refused over maxmemory: it admits new work
  run = function(p, a)
    if string.sub(p.tag, 1, 4) ~= "{fp:" then return reply.reject("invalid_input", "partition") end
    if #a.flow_kind > LIMITS.NAME_BYTES or string.find(a.flow_kind, "[%c\128-\255]") then return reply.reject("invalid_input", "flow_kind") end
    if not names.is_name(a.namespace) then return reply.reject("invalid_input", "namespace") end
    local full, f = p.id_prefix .. a.flow_id, flows.load(p, a.flow_id)
    if f and f.state == "purging" then return reply.reject("purging", full) end
    local tomb = not f and redis.call("HGET", keys.tombs(p, a.flow_id), a.flow_id)
    if f or tomb and tonumber(string.match(tomb, "^%d+")) >= p.now then
      fence.replayed(p)
      return { "already_satisfied", full }
    end
    local refusal = partition.full(p)
    if refusal then return refusal end
    local text = {}
    if a.flow_kind ~= "" then text[1], text[2] = "kind", a.flow_kind end
    if a.namespace ~= "default" then text[#text + 1], text[#text + 2] = "ns", a.namespace end
    flows.create(p, a.flow_id, "live", nil, text)
    timers.reap(p, "flow", a.flow_id, p.now + LIMITS.RETENTION_AGE_MS)
    return { "created", full }
  end,
}

-- An execution that exists becomes a member, whatever it does at the moment. One that runs before its edges are applied
-- is not held back by them: create it with a delay, or submit the graph as a whole.
define {
  name    = "ff_add_execution_to_flow",
  args    = { "flow_id:id", "execution_id:id" },
  returns = { "added", "already_member" },
  errors  = { "flow_not_found", "flow_already_terminal", "execution_not_found", "execution_already_in_flow", "flow_too_large" },
  flags   = {},
  run = function(p, a)
    local full, f = p.id_prefix .. a.execution_id, flows.load(p, a.flow_id)
    if not f then return not_found(p, a.flow_id) end
    local x = record.load_all(p, a.execution_id)
    if x and x.flow == a.flow_id then
      fence.replayed(p)
      return { "already_member", full, f.members }
    end
    local refusal = flows.closed(f)
    if refusal then return refusal end
    if f.state == "staging" then return reply.reject("flow_not_found", "its graph is still being sent") end
    if not x then return reply.reject("execution_not_found") end
    if x.flow then return reply.reject("execution_already_in_flow", p.id_prefix .. x.flow) end
    if f.members >= LIMITS.FLOW_NODES_N then return reply.reject("flow_too_large", LIMITS.FLOW_NODES_N .. " members") end
    local bytes = redis.call("STRLEN", keys.payload(p, x.id))
    if f.bytes + bytes > LIMITS.FLOW_BYTES then return reply.reject("flow_too_large", LIMITS.FLOW_BYTES .. " bytes of payloads") end
    graph.add_member(p, f, x)
    flows.add(p, f, "bytes", bytes)
    if x.started_at and f.started_at == 0 then flows.set(p, f, "started_at", tonumber(x.started_at)) end
    if state.is_terminal(x.state) then flows.look(p, f) end
    return { "added", full, f.members }
  end,
}

-- From now on no member that has not begun starts. cancel_all: every member is cancelled, what runs is asked;
-- cancel_pending: those that have not begun; flow_only: none, what has not begun stays blocked until it is cancelled by
-- itself or the flow is purged. A graph that is not published yet is removed. Again: the first answer's policy and reason.
define {
  name    = "ff_cancel_flow",
  args    = { "flow_id:id", "reason:str", "cancellation_policy:str" },
  returns = { "cancelled", "already_terminal" },
  errors  = { "flow_not_found", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not POLICIES[a.cancellation_policy] then return reply.reject("invalid_input", "cancellation_policy") end
    local f = flows.load(p, a.flow_id)
    if not f then return not_found(p, a.flow_id) end
    if f.policy or f.state == "ended" or f.state == "purging" then
      fence.replayed(p)
      return { "already_terminal", f.policy, redis.call("HGET", keys.flow_text(p, f.id), "reason"), first_members(p, f.id) }
    end
    if f.state == "staging" then
      purge.begin(p, f)
      purge.page(p, f, purge.PAGE_N)
      return { "cancelled", a.cancellation_policy, {}, 0 }
    end
    redis.call("HSET", keys.flow_text(p, f.id), "reason", names.cut(a.reason, LIMITS.REASON_BYTES))
    cascade.cancel_flow(p, f, a.cancellation_policy)
    -- Its members may stay where they are for good: their time is counted from now.
    if a.cancellation_policy == "flow_only" then timers.reap(p, "flow", f.id, p.now + LIMITS.RETENTION_MIN_AGE_MS) end
    return { "cancelled", a.cancellation_policy, first_members(p, f.id), f.members }
  end,
}

-- Set tags (their keys carry a namespace: "shop.tenant"); an empty value removes one.
define {
  name    = "ff_set_flow_tags",
  args    = { "flow_id:id", "tags:blob" },
  returns = { "ok" },
  errors  = { "flow_not_found", "invalid_tag_key", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local f = flows.load(p, a.flow_id)
    if not f then return not_found(p, a.flow_id) end
    local given = names.unpack_pairs(a.tags)
    if not given then return reply.reject("invalid_input", "tags") end
    local refusal = names.check_tags(given)
    if refusal then return refusal end
    local key = keys.flow_text(p, f.id)
    local there, kept, n = redis.call("HKEYS", key), {}, 0
    for i = 1, #there do
      if string.sub(there[i], 1, 2) == "t:" then kept[there[i]], n = true, n + 1 end
    end
    local set, gone = {}, {}
    for i = 1, #given, 2 do
      local name, value = "t:" .. given[i], given[i + 1]
      if value == "" then
        gone[#gone + 1] = name
        if kept[name] then n = n - 1 end
      else
        set[#set + 1], set[#set + 2] = name, value
        if not kept[name] then n = n + 1 end
      end
      kept[name] = value ~= ""
    end
    if n > LIMITS.TAGS_N then return reply.reject("invalid_input", "more than " .. LIMITS.TAGS_N .. " tags") end
    if #set > 0 then redis.call("HSET", key, unpack(set)) end
    if #gone > 0 then redis.call("HDEL", key, unpack(gone)) end
    flows.set(p, f, "moved_at", p.now)
    return { "ok", n }
  end,
}

-- ---- looking at it -----------------------------------------------------------------------------------

local GROUPS = { { "ready", "queued" }, { "delayed", "delayed" }, { "blocked", "blocked" }, { "active", "active" }, { "suspended", "suspended" },
  { "completed", "completed" }, { "failed", "failed" }, { "cancelled", "cancelled" }, { "expired", "expired" }, { "skipped", "skipped" } }

local function info(p, f)
  local flat, text, tags, counts = redis.call("HGETALL", keys.flow_text(p, f.id)), {}, {}, {}
  local kept = {}
  for i = 1, #flat, 2 do
    text[flat[i]] = flat[i + 1]
    if string.sub(flat[i], 1, 2) == "t:" then kept[#kept + 1] = string.sub(flat[i], 3) end
  end
  table.sort(kept)
  for i = 1, #kept do tags[#tags + 1] = kept[i]; tags[#tags + 1] = text["t:" .. kept[i]] end
  for i = 1, #GROUPS do
    local n = f[GROUPS[i][2]]
    if n > 0 then counts[#counts + 1] = GROUPS[i][1]; counts[#counts + 1] = n end
  end
  return { "flow", p.id_prefix .. f.id, text.kind or "", text.ns or "default", text.name or "", f.state, flows.public(f), f.revision, f.members,
    f.edges, f.created_at, f.moved_at, f.ended_at > 0 and f.ended_at, f.cancelled_at > 0 and f.cancelled_at, text.reason or false, f.policy,
    f.resolving, f.bytes, counts, tags }
end

define {
  name    = "ff_read_flow",
  args    = { "flow_id:id" },
  returns = { "flow" },
  errors  = { "flow_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local f = flows.load(p, a.flow_id)
    if not f then return not_found(p, a.flow_id) end
    return info(p, f)
  end,
}

-- The same, and the client is told when the flow ends, as ff_await does for executions. One read and registration in one
-- function, so an end between the two cannot be missed.
define {
  name    = "ff_await_flow",
  args    = { "flow_id:id", "client:str" },
  returns = { "flow" },
  errors  = { "flow_not_found", "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if not names.is_instance(a.client) then return reply.reject("invalid_input", "client") end
    local f = flows.load(p, a.flow_id)
    if not f then return not_found(p, a.flow_id) end
    if f.state == "live" or f.state == "staging" then
      local until_ms = p.now + LIMITS.WAITER_MS
      local name, kept_until = string.match(f.waiter or "", "^(%S+) (%d+)$")
      if not name or name == a.client or tonumber(kept_until) < p.now then
        local fresh = name == a.client and tonumber(kept_until) > p.now + LIMITS.WAITER_MS / 2
        -- Not by flows.set: who waits is no change of the flow.
        if not fresh then redis.call("HSET", f.key, "w", a.client .. " " .. record.text(p, until_ms)) end
      else
        redis.call("ZADD", keys.waiters(p, f.id), until_ms, a.client)
        timers.reap(p, "waiters", f.id, until_ms + 1000)
      end
    end
    return info(p, f)
  end,
}

local fields
local function member_fields()
  fields = {}
  local wanted = { "state", "reason", "next", "lane", "task", "lease_id", "deps", "detail", "children" }
  for i = 1, #wanted do fields[i] = record.short(wanted[i]) end
  return fields
end

-- Members by number, each read in part: a graph of 10,000 is ten pages of some milliseconds.
define {
  name    = "ff_read_members",
  args    = { "flow_id:id", "after:int", "limit:int", "edges:bool" },
  returns = { "members" },
  errors  = { "flow_not_found", "invalid_input" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if a.after < 0 then return reply.reject("invalid_input", "after") end
    if redis.call("EXISTS", keys.flow(p, a.flow_id)) == 0 then return not_found(p, a.flow_id) end
    local got = redis.call("ZRANGE", keys.members(p, a.flow_id), "(" .. string.format("%.0f", a.after), "+inf", "BYSCORE", "LIMIT", 0, a.limit + 1, "WITHSCORES")
    local wanted, rows, edges_n = fields or member_fields(), {}, 0
    for i = 1, math.min(#got, 2 * a.limit), 2 do
      local id = got[i]
      local r = redis.call("HMGET", keys.core(p, id), unpack(wanted))
      local group, edges = "", {}
      if r[7] or r[9] then
        local key = keys.incoming(p, id)
        group = redis.call("HGET", key, "g") or ""
        local n = a.edges and redis.call("HLEN", key) or 0
        if n > 0 and n <= EDGES_N then
          if edges_n > 0 and edges_n + n > EDGES_N then return { "members", rows, tonumber(got[i - 1]) } end
          edges_n = edges_n + n
          local all = graph.rows(p, id)
          for j = 1, #all do edges[j] = { p.id_prefix .. all[j].up, all[j].kind, all[j].state } end
        end
      end
      rows[#rows + 1] = { tonumber(got[i + 1]), p.id_prefix .. id, r[5] or "", r[4] and lanes.name(p, r[4]) or "", r[1] or "", r[2] or "",
        r[3] or "initial", r[6] and 1 or 0, r[8] and redis.call("HGET", keys.detail(p, id), "label") or "", group, edges }
    end
    return { "members", rows, #got > 2 * a.limit and tonumber(got[2 * a.limit]) or 0 }
  end,
}

-- Flows of this partition in the order of their ids. A page may be short or empty and still have a cursor: one call looks
-- at a bounded number of them.
define {
  name    = "ff_list_flows",
  args    = { "cursor:str?", "limit:int", "status:str?" },
  returns = { "flows_page" },
  errors  = { "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    if a.limit < 1 or a.limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
    if a.status and a.status ~= "active" and not PUBLIC[a.status] then return reply.reject("invalid_input", "status") end
    local refusal, ids, more = names.page(p, keys.flows(p), a.cursor, a.status and LIMITS.PAGE_MAX_N or a.limit)
    if refusal then return refusal end
    local rows, last = {}, ""
    for i = 1, #ids do
      if #rows == a.limit then return { "flows_page", rows, last } end
      last = p.id_prefix .. ids[i]
      local f = flows.load(p, ids[i])
      local public = f and flows.public(f)
      if f and (not a.status or a.status == public or a.status == PUBLIC[public]) then
        rows[#rows + 1] = { last, f.created_at, public, f.members, redis.call("HGET", keys.flow_text(p, f.id), "name") or "" }
      end
    end
    return { "flows_page", rows, more }
  end,
}
