-- shared/condition.lua -- what must arrive before a suspended execution goes on, evaluated as it arrives.
--
-- A condition is a tree. The caller compiles it (ffcore/conditions.py) into a list of nodes, parents before children:
--   ["single", parent, waitpoint, name]              a signal at a waitpoint; name: one, a list of them, or null for any
--   ["all_of", parent, members]                      every member, in any order
--   ["count", parent, n, kind, name, [waitpoint]]    n signals, distinct by waitpoint, signal or source
--   ["operator_only", parent]   ["timeout_only", parent]
-- `parent` is the number of an earlier node (0: the root), a waitpoint the number of one of those the suspension names.
--
-- Each node keeps a state of its own: whether a single was met, how many members of an all_of are, and which distinct
-- signals a count has seen. A signal touches the leaves that name its waitpoint and what is above them; nothing else is
-- read. Two counts never share a tally, and a node deep in the tree is met like one at its top.

local condition = {}

local KINDS = { distinct_waitpoints = true, distinct_signals = true, distinct_sources = true }

local function is_count(value, most) return type(value) == "number" and value >= 1 and value <= most and value % 1 == 0 end

local function is_name(value) return type(value) == "string" and #value >= 1 and #value <= LIMITS.NAME_BYTES end

-- The names a node accepts: a set, nil for any, or false when they are unreadable.
local function matcher(value)
  if value == nil or value == cjson.null then return nil end
  if is_name(value) then return { [value] = true } end
  if type(value) ~= "table" or #value < 1 or #value > LIMITS.MATCHER_NAMES_N then return false end
  local set = {}
  for i = 1, #value do
    if not is_name(value[i]) then return false end
    set[value[i]] = true
  end
  return set
end

local function note(tree, waitpoint, i)
  local list = tree.at[waitpoint]
  if not list then
    list = {}
    tree.at[waitpoint] = list
  end
  list[#list + 1] = i
  if waitpoint > tree.waitpoints_n then tree.waitpoints_n = waitpoint end
end

-- One node of the list, and what it adds to the tree; nil when it is unreadable.
local function node(tree, i, raw)
  if type(raw) ~= "table" then return nil end
  local kind, parent = raw[1], raw[2]
  if type(parent) ~= "number" or parent % 1 ~= 0 or parent < 0 or parent >= i or (parent == 0) ~= (i == 1) then return nil end
  local above = tree.nodes[parent]
  if above and above.kind ~= "all_of" then return nil end
  local one = { kind = kind, parent = parent, depth = above and above.depth + 1 or 0 }
  if kind == "single" then
    one.names = matcher(raw[4])
    if one.names == false or not is_count(raw[3], LIMITS.WAITPOINTS_N) then return nil end
    note(tree, raw[3], i)
  elseif kind == "all_of" then
    if not is_count(raw[3], LIMITS.CONDITION_NODES_N) or one.depth >= LIMITS.CONDITION_DEPTH then return nil end
    one.need, one.members = raw[3], 0
  elseif kind == "count" then
    local list = raw[6]
    one.names, one.need, one.by = matcher(raw[5]), raw[3], raw[4]
    if one.names == false or not is_count(one.need, LIMITS.SIGNALS_N) or not KINDS[one.by] or type(list) ~= "table" or #list < 1
      or #list > LIMITS.WAITPOINTS_N or one.depth >= LIMITS.CONDITION_DEPTH then return nil end
    local seen = {}
    for j = 1, #list do
      if not is_count(list[j], LIMITS.WAITPOINTS_N) or seen[list[j]] then return nil end
      seen[list[j]] = true
      note(tree, list[j], i)
    end
    if one.by == "distinct_waitpoints" and one.need > #list then return nil end
  elseif kind == "operator_only" then
    tree.operators[#tree.operators + 1] = i
  elseif kind == "timeout_only" then
    tree.needs_time = true   -- a member of an all_of, or alone: nothing else ends it
  else
    return nil
  end
  if above then above.members = above.members + 1 end
  return one
end

local function build(list)
  if type(list) ~= "table" or #list < 1 or #list > LIMITS.CONDITION_NODES_N then return nil end
  local tree = { nodes = {}, at = {}, operators = {}, waitpoints_n = 0 }
  for i = 1, #list do
    local one = node(tree, i, list[i])
    if not one then return nil end
    tree.nodes[i] = one
  end
  for i = 1, #tree.nodes do
    local one = tree.nodes[i]
    if one.kind == "all_of" and one.members ~= one.need then return nil end
  end
  return tree
end

-- The tree of a compiled condition, or nil if it is not one. Kept per process: a cache, never state.
local known, known_n = {}, 0
function condition.read(text)
  local tree = known[text]
  if tree then return tree end
  if #text > LIMITS.CONDITION_BYTES then return nil end
  local ok, list = pcall(cjson.decode, text)
  tree = ok and build(list) or nil
  if tree then
    if known_n >= 256 then known, known_n = {}, 0 end
    known[text], known_n = tree, known_n + 1
  end
  return tree
end

-- What an operator's word alone satisfies: a suspension that has been escalated waits for this.
condition.OPERATOR = '[["operator_only",0]]'

-- ---- state -------------------------------------------------------------------------------------------------
-- Fields of the suspension's hash: n<node>, how far it is; t<node>:<token>, what a count has seen.

-- The state behind a hash; without one, that of a condition nothing has been offered to.
function condition.state(key) return { key = key, known = {}, set = {} } end

local function load(st, fields)
  if not st.key then return end
  local missing = {}
  for i = 1, #fields do if st.known[fields[i]] == nil then missing[#missing + 1] = fields[i] end end
  if #missing == 0 then return end
  local got = redis.call("HMGET", st.key, unpack(missing))
  for i = 1, #missing do st.known[missing[i]] = got[i] end
end

local function value(st, field) return tonumber(st.known[field] or nil) or 0 end

local function put(st, field, n)
  st.known[field] = n
  st.set[#st.set + 1], st.set[#st.set + 2] = field, n
end

-- A node is met: so may be what is above it. Whether the root is.
local function climb(tree, st, i)
  local parent = tree.nodes[i].parent
  while parent ~= 0 do
    local n = value(st, "n" .. parent) + 1
    put(st, "n" .. parent, n)
    if n < tree.nodes[parent].need then return false end
    parent = tree.nodes[parent].parent
  end
  return true
end

local function ancestors(tree, fields, i)
  fields[#fields + 1] = "n" .. i
  local parent = tree.nodes[i].parent
  while parent ~= 0 do
    fields[#fields + 1] = "n" .. parent
    parent = tree.nodes[parent].parent
  end
end

-- What makes a signal another one for a count.
local function token(one, waitpoint, signal)
  if one.by == "distinct_waitpoints" then return waitpoint .. "" end
  if one.by == "distinct_signals" then return signal.id end
  return string.sub(redis.sha1hex(#signal.source_type .. ":" .. signal.source_type .. signal.source_identity), 1, 24)
end

-- Offer a signal (id, name, source_type, source_identity) that came to a waitpoint. Answers what became of it and whether
-- the whole condition is met now. Writes nothing: changed state is in st.set, for one HSET of the caller.
--   "counted"      it brought the condition forward
--   "duplicate"    what it would meet had been met before
--   "unmatched"    its name is not the one that is waited for
--   "elsewhere"    nothing in the condition names its waitpoint
function condition.offer(tree, st, waitpoint, signal)
  local leaves = tree.at[waitpoint]
  if not leaves then return "elsewhere", false end
  if #tree.nodes == 1 and tree.nodes[1].kind == "single" then
    -- The common one: nothing to remember, its first match is the last.
    if tree.nodes[1].names and not tree.nodes[1].names[signal.name] then return "unmatched", false end
    return "counted", true
  end
  local hit, fields, tokens = {}, {}, {}
  for l = 1, #leaves do
    local i = leaves[l]
    local one = tree.nodes[i]
    if not one.names or one.names[signal.name] then
      hit[#hit + 1] = i
      ancestors(tree, fields, i)
      if one.kind == "count" then
        tokens[i] = "t" .. i .. ":" .. token(one, waitpoint, signal)
        fields[#fields + 1] = tokens[i]
      end
    end
  end
  if #hit == 0 then return "unmatched", false end
  load(st, fields)
  local counted, met = false, false
  for h = 1, #hit do
    local i = hit[h]
    local one, n = tree.nodes[i], value(st, "n" .. i)
    if one.kind == "single" then
      if n == 0 then
        put(st, "n" .. i, 1)
        counted, met = true, climb(tree, st, i) or met
      end
    elseif n < one.need and value(st, tokens[i]) == 0 then
      put(st, tokens[i], 1)
      put(st, "n" .. i, n + 1)
      counted = true
      if n + 1 == one.need then met = climb(tree, st, i) or met end
    end
  end
  return counted and "counted" or "duplicate", met
end

-- An operator's word: meets every node that waits for it. Answers whether there was one that had not been met, and whether
-- the whole condition is met now.
function condition.approve(tree, st)
  local fields, met, any = {}, false, false
  for o = 1, #tree.operators do ancestors(tree, fields, tree.operators[o]) end
  if #fields > 0 then load(st, fields) end
  for o = 1, #tree.operators do
    local i = tree.operators[o]
    if value(st, "n" .. i) == 0 then
      put(st, "n" .. i, 1)
      any, met = true, climb(tree, st, i) or met
    end
  end
  return any, met
end

-- Names of signals a waitpoint's leaves wait for, sorted; empty when any name will do.
function condition.names(tree, waitpoint)
  local out, seen, leaves = {}, {}, tree.at[waitpoint] or {}
  for l = 1, #leaves do
    local names = tree.nodes[leaves[l]].names
    if not names then return {} end
    for name in pairs(names) do -- order-free
      if not seen[name] then
        seen[name] = true
        out[#out + 1] = name
      end
    end
  end
  table.sort(out)
  return out
end
