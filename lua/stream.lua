-- stream.lua -- frames an attempt emits, reading them back, and the summary beside them.
--
-- Whoever appends holds the lease; whoever reads needs nothing. Payloads are bytes, and come back as they were.

define {
  name    = "ff_append_frame",
  args    = { "execution_id:id", "lease_id:str", "lease_epoch:int", "attempt_id:str", "frame_type:str", "timestamp:int", "payload:blob",
              "encoding:str?", "metadata_json:str?", "correlation_id:str?", "source:str?", "retention_maxlen:int?", "max_payload_bytes:int?",
              "mode:str", "op:int?" },
  returns = { "appended" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "payload_too_large", "invalid_frame_type",
              "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load_leased(p, a.execution_id)
    local refusal = fence.check(p, x, a.lease_id .. " " .. string.format("%.0f", a.lease_epoch) .. " " .. a.attempt_id)
    if refusal then return refusal end
    refusal = stream.refusal(a)
    if refusal then return refusal end
    if a.max_payload_bytes and #a.payload > a.max_payload_bytes then
      return reply.reject("payload_too_large", "a frame of " .. #a.payload .. " bytes, the caller allows " .. a.max_payload_bytes)
    end
    if a.retention_maxlen and a.retention_maxlen < 0 then return reply.reject("invalid_input", "retention_maxlen") end
    if a.metadata_json and #a.metadata_json > LIMITS.REASON_BYTES then return reply.reject("invalid_input", "metadata_json") end
    if a.source and #a.source > LIMITS.NAME_BYTES then return reply.reject("invalid_input", "source") end
    if a.op and a.op < 1 then return reply.reject("invalid_input", "op") end
    local s = stream.open(p, x)
    if a.op and a.op <= s.op then
      fence.replayed(p)
      return { "appended", s.op_id, s.n, 1 }
    end
    fence.heard(p, x)
    a.metadata, a.timestamp = a.metadata_json, record.text(p, a.timestamp)
    local id = stream.add(p, x, s, a, a.retention_maxlen)
    stream.close(p, x, s)
    return { "appended", id, s.n, 0 }
  end,
}

-- Frames of many executions of a partition. Each is answered on its own; those of one execution are in order.
define {
  name    = "ff_append_frames",
  args    = { "retention_maxlen:int?", "items:rows(execution_id:id,fence:fence,op:int,frame_type:str,mode:str,payload:blob,encoding:str?,correlation_id:str?)" },
  returns = { "appended_many" },
  errors  = { "invalid_input" },
  flags   = { "allow-oom" },
  run = function(p, a)
    if a.retention_maxlen and a.retention_maxlen < 0 then return reply.reject("invalid_input", "retention_maxlen") end
    local out, opened, order = {}, {}, {}
    for i = 1, #a.items do
      local row = a.items[i]
      local refusal = row.op and row.op < 1 and reply.reject("invalid_input", "op") or stream.refusal(row)
      local had
      if not refusal then
        -- One look at a record for all its frames; a fence that differs from the last one's is looked at anew.
        had = opened[row.execution_id]
        if not had or had.fence ~= row.fence then
          local x = had and had.x or record.load_leased(p, row.execution_id)
          refusal = fence.check(p, x, row.fence)
          if not refusal then
            if not had then
              fence.heard(p, x)
              had = { x = x, s = stream.open(p, x) }
              opened[row.execution_id] = had
              order[#order + 1] = had
            end
            had.fence = row.fence
          end
        end
      end
      if refusal then
        out[i] = { "error", refusal[2], refusal[3] }
      elseif row.op <= had.s.op then
        fence.replayed(p)
        out[i] = { "replayed", had.s.op_id }
      else
        out[i] = { "appended", stream.add(p, had.x, had.s, row, a.retention_maxlen) }
      end
    end
    for i = 1, #order do stream.close(p, order[i].x, order[i].s) end
    return { "appended_many", out }
  end,
}

-- Frames of one attempt between two positions, both included, and whether more may come.
define {
  name    = "ff_read_attempt_stream",
  args    = { "execution_id:id", "attempt_index:int", "from_id:str", "to_id:str", "count_limit:int", "visibility:str" },
  returns = { "frames" },
  errors  = { "execution_not_found", "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if a.count_limit < 1 or a.count_limit > LIMITS.STREAM_READ_N then return reply.reject("invalid_input", "count_limit: 1 to " .. LIMITS.STREAM_READ_N) end
    if a.attempt_index < 0 then return reply.reject("invalid_input", "attempt_index") end
    if a.visibility ~= "all" and a.visibility ~= "exclude_best_effort" then return reply.reject("invalid_input", "visibility") end
    if a.from_id ~= "-" and a.from_id ~= "+" and not stream.is_id(a.from_id) then return reply.reject("invalid_offset", "from_id") end
    if a.to_id ~= "-" and a.to_id ~= "+" and not stream.is_id(a.to_id) then return reply.reject("invalid_offset", "to_id") end
    local index, frames, out = record.text(p, a.attempt_index), {}, { bytes = 0 }
    local more = stream.read(p, x.id, index, a.from_id, a.to_id, a.count_limit, out, function(id, fields, live)
      local flat = {}
      local function put(name, value) if value then flat[#flat + 1], flat[#flat + 2] = name, value end end
      put("correlation_id", fields.c)
      put("encoding", fields.e)
      put("frame_type", fields.t)
      put("metadata_json", fields.m)
      put("mode", live and "best_effort" or "append")
      put("source", fields.s)
      put("ts", fields.w or string.match(id, "^%d+"))
      frames[#frames + 1] = { id, flat, fields.p }
    end, a.visibility == "exclude_best_effort")
    local closed_at, reason = stream.closed(p, x, index)
    return { "frames", { frames, closed_at and tonumber(closed_at) or "", reason or "", more and 1 or 0 } }
  end,
}

-- Frames of all attempts behind a place, in order. Ids rise from attempt to attempt, so one id is the whole place. Where
-- the oldest frame that an attempt still keeps is among them and older ones are gone, the answer says before which frame:
-- a reader that comes from before it has missed some.
define {
  name    = "ff_read_stream",
  args    = { "execution_id:id", "after:str", "limit:int", "visibility:str" },
  returns = { "page" },
  errors  = { "execution_not_found", "invalid_input", "invalid_offset" },
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    if a.limit < 1 or a.limit > LIMITS.STREAM_READ_N then return reply.reject("invalid_input", "limit: 1 to " .. LIMITS.STREAM_READ_N) end
    if a.visibility ~= "all" and a.visibility ~= "exclude_best_effort" then return reply.reject("invalid_input", "visibility") end
    local after = a.after
    if after ~= "-" and after ~= "+" and not stream.is_id(after) then return reply.reject("invalid_offset", "after") end
    local list = x.streams and stream.attempts(p, x.id) or {}
    if after == "+" then after = stream.last(p, x.id)
    elseif after == "-" then after = "0-0"
    elseif not string.find(after, "-", 1, true) then after = after .. "-0" end
    -- The attempt the place lies in: the last one that began at or before it.
    local at, first = -1, 1
    for i = 1, #list do
      if not stream.before(after, list[i][2]) then at, first = tonumber(list[i][1]), i end
    end
    local frames, gaps, cursor, out, more = {}, {}, after, { bytes = 0 }, false
    for i = first, #list do
      local oldest
      if more then break end
      if #frames >= a.limit then
        more = true
        break
      end
      local index = tonumber(list[i][1])
      more = stream.read(p, x.id, list[i][1], "(" .. after, "+", a.limit - #frames, out, function(id, fields, live)
        frames[#frames + 1] = { index, id, fields.t, fields.p, fields.e or "", fields.c or "", live and 1 or 0 }
        cursor = id
        if not live then oldest = oldest or id end
      end, a.visibility == "exclude_best_effort")
      local gone = oldest and stream.dropped_before(p, x.id, list[i][1], oldest) or 0
      if gone > 0 then gaps[#gaps + 1] = { oldest, gone } end
    end
    return { "page", frames, cursor, at, x.attempt and tonumber(x.attempt) or -1, state.is_terminal(x.state) and x.state or "", more and 1 or 0, gaps }
  end,
}

-- ---- the summary -----------------------------------------------------------------------------------------

define {
  name    = "ff_read_summary",
  args    = { "execution_id:id" },
  returns = { "summary" },
  errors  = { "execution_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    local got = redis.call("HMGET", keys.summary(p, x.id), "document", "version", "last", "first")
    if not got[1] then return { "summary", "" } end
    return { "summary", { got[1], tonumber(got[2]), "json_merge_patch", tonumber(got[3]), tonumber(got[4]) } }
  end,
}

-- The document is patched by the caller, who read it: here it is only compared by its version and replaced.
define {
  name    = "ff_write_summary",
  args    = { "execution_id:id", "fence:fence", "document_json:blob", "expected_version:int" },
  returns = { "written" },
  errors  = { "execution_not_found", "terminal", "stale_lease", "lease_revoked", "lease_expired", "payload_too_large", "revision_conflict" },
  flags   = { "allow-oom" },
  run = function(p, a)
    local x = record.load(p, a.execution_id)
    local refusal = fence.check(p, x, a.fence)
    if refusal then return refusal end
    if #a.document_json > LIMITS.SUMMARY_BYTES then
      return reply.reject("payload_too_large", "a summary of " .. #a.document_json .. " bytes, the limit is " .. LIMITS.SUMMARY_BYTES)
    end
    local key = keys.summary(p, x.id)
    local got = redis.call("HMGET", key, "version", "epoch", "document")
    local version = tonumber(got[1] or "0")
    if version == a.expected_version + 1 and got[2] == x.lease_epoch and got[3] == a.document_json then
      fence.replayed(p)
      return { "written", version }
    end
    if version ~= a.expected_version then return reply.reject("revision_conflict", "the summary is at version " .. version) end
    fence.heard(p, x)
    redis.call("HSET", key, "document", a.document_json, "version", version + 1, "epoch", x.lease_epoch, "last", record.text(p, p.now))
    redis.call("HSETNX", key, "first", record.text(p, p.now))
    return { "written", version + 1 }
  end,
}
