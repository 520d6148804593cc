-- shared/names.lua -- what user text may be: one check per kind, for every function that takes it.

local names = {}

-- Lane, task and namespace names: short, no white space, nothing that could end a hash tag.
function names.is_name(text) return text ~= "" and #text <= LIMITS.NAME_BYTES and not string.find(text, "[%c%s{}]") end
-- Lane names share a table with rows of its own, which begin with "#".
function names.is_lane(text) return names.is_name(text) and not string.find(text, "#", 1, true) end
-- Worker instances, clients, tickers: part of lease ids and channels.
function names.is_instance(text) return text ~= "" and #text <= LIMITS.WORKER_INSTANCE_BYTES and not string.find(text, "[%c%s]") end
-- Tag keys carry a namespace of their owner: "shop.tenant".
function names.is_tag_key(text) return #text <= LIMITS.NAME_BYTES and string.find(text, "^[a-z][a-z0-9_]*%.[%w_.%-]+$") ~= nil end

-- Flat, length-prefixed pairs ("<bytes>:<text>" each, ffcore/wire.py), so that any text survives without an
-- escape or a JSON decoder. nil when malformed or out of bounds.
function names.unpack_pairs(packed)
  local flat, at = {}, 1
  while at <= #packed do
    local colon = string.find(packed, ":", at, true)
    local n = colon and tonumber(string.sub(packed, at, colon - 1))
    if not n or n < 0 or colon + n > #packed then return nil end
    flat[#flat + 1] = string.sub(packed, colon + 1, colon + n)
    at = colon + n + 1
  end
  if #flat % 2 == 1 or #flat > 2 * LIMITS.TAGS_N then return nil end
  return flat
end

-- Whether tags (flat pairs) may be stored; a refusal if not.
function names.check_tags(flat)
  for i = 1, #flat, 2 do
    if not names.is_tag_key(flat[i]) then return reply.reject("invalid_tag_key", flat[i]) end
    if #flat[i + 1] > LIMITS.TAG_VALUE_BYTES then return reply.reject("invalid_input", "tag " .. flat[i]) end
  end
end
