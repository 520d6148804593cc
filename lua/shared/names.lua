-- shared/names.lua -- what user text may be: one check per kind, for every function that takes it.

local names = {}

-- Lane, task and namespace names: short, no white space, nothing that could end a hash tag, no byte that may be
-- no text: a reader of the listing would fail on it.
function names.is_name(text) return text ~= "" and #text <= LIMITS.NAME_BYTES and not string.find(text, "[%c%s{}\128-\255]") end
-- Lane names share a table with rows of its own, which begin with "#".
function names.is_lane(text) return names.is_name(text) and not string.find(text, "#", 1, true) end
-- Worker instances, clients, tickers: part of lease ids and channels.
function names.is_instance(text) return text ~= "" and #text <= LIMITS.WORKER_INSTANCE_BYTES and not string.find(text, "[^!-~]") end
-- Tag keys carry a namespace of their owner: "shop.tenant".
function names.is_tag_key(text) return #text <= LIMITS.NAME_BYTES and string.find(text, "^[a-z][a-z0-9_]*%.[%w_.%-]+$") ~= nil end

-- At most n bytes of a text, never half of a character: a reader would fail on it.
function names.cut(text, n)
  if #text <= n then return text end
  while n > 0 and string.find(text, "^[\128-\191]", n + 1) do n = n - 1 end
  return string.sub(text, 1, n)
end

-- Flat, length-prefixed pairs ("<bytes>:<text>" each, ffcore/wire.py), so that any text survives without an
-- escape or a JSON decoder. At most TAGS_N of them, or `most`. nil when malformed or out of bounds.
function names.unpack_pairs(packed, most)
  local flat, at = {}, 1
  most = 2 * (most or LIMITS.TAGS_N)
  while at <= #packed do
    local colon = string.find(packed, ":", at, true)
    -- Digits alone: tonumber would take "nan", "0x1" and "1e0" as well.
    local n = colon and tonumber(string.match(string.sub(packed, at, colon - 1), "^%d+$"))
    if not n or colon + n > #packed or #flat >= most then return nil end
    flat[#flat + 1] = string.sub(packed, colon + 1, colon + n)
    at = colon + n + 1
  end
  if #flat % 2 == 1 then return nil end
  return flat
end

-- Whether tags (flat pairs) may be stored; a refusal if not.
function names.check_tags(flat)
  for i = 1, #flat, 2 do
    if not names.is_tag_key(flat[i]) then return reply.reject("invalid_tag_key", flat[i]) end
    if #flat[i + 1] > LIMITS.TAG_VALUE_BYTES then return reply.reject("invalid_input", "tag " .. flat[i]) end
  end
end

-- One page of the ids a set keeps in their order: at most `limit`, from behind a cursor. A refusal; or nil, the ids
-- without their tag, and the cursor of the next page ("" on the last one).
function names.page(p, key, cursor, limit)
  if limit < 1 or limit > LIMITS.PAGE_MAX_N then return reply.reject("invalid_input", "limit") end
  local from, n = "-", p.id_prefix_n
  if cursor then
    if #cursor ~= n + 36 or string.sub(cursor, 1, n) ~= p.id_prefix then
      return reply.reject("invalid_offset", "cursor: pass what the page before answered")
    end
    from = "(" .. string.sub(cursor, n + 1)
  end
  local ids = redis.call("ZRANGE", key, from, "+", "BYLEX", "LIMIT", 0, limit + 1)
  if #ids <= limit then return nil, ids, "" end
  ids[limit + 1] = nil
  return nil, ids, p.id_prefix .. ids[limit]
end
