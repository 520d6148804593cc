-- signal.lua -- messages to a waitpoint: by whoever has its token, or by an operator.
--
-- One path for both functions: a waitpoint that nothing waits at keeps the signal, an active one weighs it at once. The
-- order of the checks: the token; then the key, since a signal that was taken is answered the same for ever after;
-- then whether there is room for a new one.
--
-- Whatever is wrong with a token is answered alike: no such execution, none of its waitpoints, another token, a kid whose
-- grace is over. The feed says which, once in a while (BAD_TOKENS_MS) with how many there were: hostile senders must not
-- push everything else out of it. In the feed stand
--   token_refused <why> <waitpoint uuid or -> <how many so far>
--   signal <name> <effect> <waitpoint uuid>
--   signal_by_operator <waitpoint uuid> <who>          beside the entry above

local function refused(p, x, a, why)
  local n = redis.call("HINCRBY", p.key, "bad_tokens", 1)
  if p.now - tonumber(redis.call("HGET", p.key, "bad_tokens_at") or "0") >= LIMITS.BAD_TOKENS_MS then
    redis.call("HSET", p.key, "bad_tokens_at", string.format("%.0f", p.now))
    local text = "token_refused " .. why .. " " .. (waitpoints.is_id(a.waitpoint_id) and a.waitpoint_id or "-") .. " " .. string.format("%.0f", n)
    if x then events.add(p, x, x.state, x.state, text) else events.note(p, text) end
  end
  return reply.reject("invalid_token")
end

-- The execution and the waitpoint a call may send to; or a refusal.
local function opened(p, a)
  if not a.operator and a.token_digest == "" then return nil, nil, reply.reject("missing_token") end
  local x = record.load_all(p, a.execution_id)
  local row = x and waitpoints.load(p, x, a.waitpoint_id)
  if a.operator then
    if not x then return nil, nil, reply.reject("execution_not_found") end
    if not row then return nil, nil, reply.reject("waitpoint_not_found", string.sub(a.waitpoint_id, 1, 64)) end
    return x, row
  end
  if not x then return nil, nil, refused(p, nil, a, "no_execution") end
  if not row then return nil, nil, refused(p, x, a, "no_waitpoint") end
  if not row.digest then return nil, nil, refused(p, x, a, "opened_without_token") end
  if row.digest ~= a.token_digest then return nil, nil, refused(p, x, a, "other_token") end
  if not waitpoints.verifies(p, row.kid) then return nil, nil, refused(p, x, a, "kid_expired") end
  return x, row
end

local function fits(text, bytes, empty) return (empty or text ~= "") and #text <= bytes and not string.find(text, "%c") end

-- The first thing wrong with what was sent, as a refusal.
local function malformed(a)
  local bad
  if not names.is_instance(a.signal_id) then bad = "signal_id"
  elseif not fits(a.signal_name, LIMITS.NAME_BYTES) then bad = "signal_name"
  elseif not fits(a.signal_category, LIMITS.NAME_BYTES) then bad = "signal_category"
  elseif not fits(a.source_type, LIMITS.NAME_BYTES, true) then bad = "source_type"
  elseif not fits(a.source_identity, LIMITS.KEY_BYTES, true) then bad = "source_identity"
  elseif a.payload_encoding and not fits(a.payload_encoding, LIMITS.NAME_BYTES) then bad = "payload_encoding"
  elseif a.correlation_id and not fits(a.correlation_id, LIMITS.KEY_BYTES, true) then bad = "correlation_id"
  elseif a.idempotency_key and not fits(a.idempotency_key, LIMITS.KEY_BYTES) then bad = "idempotency_key"
  elseif a.dedup_ttl_ms and (a.dedup_ttl_ms < 0 or a.dedup_ttl_ms > LIMITS.SPAN_MAX_MS) then bad = "dedup_ttl_ms"
  elseif a.max_signals_per_execution and a.max_signals_per_execution < 0 then bad = "max_signals_per_execution" end
  if bad then return reply.reject("invalid_input", bad) end
  if a.payload and #a.payload > LIMITS.SIGNAL_BYTES then return reply.reject("payload_too_large", #a.payload) end
end

-- Answers what became of the signal: "accepted", effect | "duplicate", effect, id of the first | a refusal.
local function deliver(p, a)
  local x, row, refusal = opened(p, a)
  refusal = refusal or malformed(a)
  if refusal then return refusal end
  local key = keys.signals(p, x.id)
  -- One without a key is known by its own id: a call whose reply was lost is sent again.
  local dedup = "k" .. redis.sha1hex(a.waitpoint_id .. (a.idempotency_key or "\n" .. a.signal_id))
  local known = redis.call("HMGET", key, "n", "c" .. a.waitpoint_id, dedup)
  if known[3] then
    local until_ms, first_id, effect = string.match(known[3], "^(%d+) (%S+) (%S+) %d+$")
    if until_ms and tonumber(until_ms) > p.now then
      fence.replayed(p)
      return { "duplicate", first_id, effect }
    end
  end
  if row.state == "closed" then return reply.reject("waitpoint_closed", row.reason) end
  -- The timer is about to close it, and what it keeps goes with it.
  if row.state == "pending" and row.expires and row.expires <= p.now then return reply.reject("waitpoint_closed", "expired") end
  local tally = waitpoints.tally(p, x, known[1] or "")
  local most = math.min(tonumber(x.signals_n) or LIMITS.SIGNALS_N, a.max_signals_per_execution or LIMITS.SIGNALS_N)
  if tally.total >= most then return reply.reject("signal_limit_exceeded", most .. " signals") end
  local signal = { seq = tally.total + 1, waitpoint_id = a.waitpoint_id, id = a.signal_id, name = a.signal_name, category = a.signal_category,
    source_type = a.source_type, source_identity = a.source_identity, correlation_id = a.correlation_id or "", accepted_at = p.now,
    key = a.idempotency_key or "", encoding = a.payload_encoding or "", payload = a.payload or "", operator = a.operator }
  signal.packed = waitpoints.packed(p, signal)
  if tally.bytes + #signal.packed > LIMITS.SIGNALS_BYTES then
    return reply.reject("signal_limit_exceeded", LIMITS.SIGNALS_BYTES .. " bytes are kept")
  end
  local effect, taken, weighed = "appended_to_waitpoint", false, row.state == "active"
  if weighed then
    effect, taken = suspension.signal(p, x, row.index, signal)
    if not effect then return taken end
  end
  tally.total = signal.seq
  local until_ms = p.now + (a.dedup_ttl_ms or LIMITS.SIGNAL_DEDUP_MS)
  local set = { dedup, record.text(p, until_ms) .. " " .. a.signal_id .. " " .. effect .. " " .. signal.seq }
  -- What resumed it may have closed the waitpoint: then nothing is kept there any more.
  if not taken and waitpoints.load(p, x, a.waitpoint_id).state ~= "closed" then
    -- Read anew where the suspension had its hand in: one that is over may have let go of what was kept.
    local counted = known[2]
    if weighed then counted = redis.call("HGET", key, "c" .. a.waitpoint_id) end
    local first, kept = string.match(counted or "", "^(%d+) (%d+)$")
    tally.kept, tally.bytes = tally.kept + 1, tally.bytes + #signal.packed
    set[#set + 1], set[#set + 2] = "s" .. signal.seq, signal.packed
    set[#set + 1], set[#set + 2] = "c" .. a.waitpoint_id, (first or signal.seq) .. " " .. (tonumber(kept or "0") + 1)
  end
  set[#set + 1], set[#set + 2] = "n", waitpoints.tally_text(tally)
  redis.call("HSET", key, unpack(set))
  events.add(p, x, x.state, x.state, "signal " .. a.signal_name .. " " .. effect .. " " .. a.waitpoint_id)
  if a.operator then events.add(p, x, x.state, x.state, "signal_by_operator " .. a.waitpoint_id .. " " .. a.source_identity) end
  return { "accepted", a.signal_id, effect }
end

-- No allow-oom, in contrast to all that a lease holder or the engine calls: a full store takes no new signals.
define {
  name    = "ff_deliver_signal",
  args    = { "execution_id:id", "waitpoint_id:str", "signal_id:str", "signal_name:str", "signal_category:str", "source_type:str",
              "source_identity:str", "payload:blob?", "payload_encoding:str?", "correlation_id:str?", "idempotency_key:str?",
              "dedup_ttl_ms:int?", "max_signals_per_execution:int?", "token_digest:str", "operator:bool" },
  returns = { "accepted", "duplicate" },
  errors  = { "missing_token", "invalid_token", "execution_not_found", "waitpoint_not_found", "waitpoint_closed", "signal_limit_exceeded",
              "payload_too_large", "invalid_input" },
  flags   = {},
  run = deliver,
}

define {
  name    = "ff_buffer_signal_for_pending_waitpoint",
  args    = { "execution_id:id", "waitpoint_id:str", "signal_id:str", "signal_name:str", "signal_category:str", "source_type:str",
              "source_identity:str", "payload:blob?", "payload_encoding:str?", "correlation_id:str?", "idempotency_key:str?",
              "dedup_ttl_ms:int?", "max_signals_per_execution:int?", "token_digest:str", "operator:bool" },
  returns = { "buffered", "duplicate" },
  errors  = { "missing_token", "invalid_token", "execution_not_found", "waitpoint_not_found", "waitpoint_closed", "signal_limit_exceeded",
              "payload_too_large", "invalid_input" },
  flags   = {},
  run = function(p, a)
    local answer = deliver(p, a)
    if answer[1] == "accepted" then return { "buffered", answer[2] } end
    return answer
  end,
}
