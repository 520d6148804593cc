-- shared/amounts.lua -- amounts of several dimensions: "tokens=500,usd=0.002".
--
-- Decimals of at most six places below 2^53. They are kept as doubles and rounded to six places after every addition
-- that is not whole, so whole ones are exact all the way and others up to nine billion.

local amounts = { MOST = 9007199254740992 }
do   -- helpers of this file

-- A number from text; nil for a sign, an exponent, more than six places, or too much of it.
function amounts.number(text)
  local whole, places = string.match(text, "^(%d+)%.?(%d*)$")
  if not whole or #whole > 16 or #places > 6 or (places == "" and #text ~= #whole) then return nil end
  local n = tonumber(text)
  return n < amounts.MOST and n or nil
end

function amounts.text(n)
  if n % 1 == 0 then return string.format("%.0f", n) end
  return (string.gsub(string.format("%.6f", n), "0+$", ""))
end

local function rounded(n)
  if n % 1 == 0 then return n end
  return math.floor(n * 1000000 + 0.5) / 1000000
end

function amounts.add(one, other) return math.min(rounded(one + other), amounts.MOST) end
function amounts.less(one, other) return math.max(0, rounded(one - other)) end

function amounts.is_dimension(name) return #name <= 64 and string.find(name, "^[%a_][%w_.%-]*$") ~= nil end

-- Dimensions in order of their names, and how much of each; nil for a text that is none. "" and "-" are nothing.
function amounts.parse(text)
  local names_of, by_name = {}, {}
  if text == "" or text == "-" then return names_of, by_name end
  if #text > 4096 then return nil end
  for part in string.gmatch(text .. ",", "([^,]*),") do
    local name, value = string.match(part, "^([^=]+)=(.*)$")
    local n = name and amounts.is_dimension(name) and amounts.number(value)
    if not n or by_name[name] or #names_of == LIMITS.DIMENSIONS_N then return nil end
    names_of[#names_of + 1], by_name[name] = name, n
  end
  table.sort(names_of)
  return names_of, by_name
end

-- The other way, without those that are nothing; "-" for nothing at all.
function amounts.pack(names_of, by_name)
  local parts = {}
  for i = 1, #names_of do
    local n = by_name[names_of[i]]
    if n and n > 0 then parts[#parts + 1] = names_of[i] .. "=" .. amounts.text(n) end
  end
  return #parts > 0 and table.concat(parts, ",") or "-"
end

end
