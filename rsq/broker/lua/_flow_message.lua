-- Part of _flow and of _steps: what is put into a call when it is released.
-- What is much the same for the calls of one script is made once: each text costs as much as the call of a function.

local char, byte, sub, packed_numbers, text_heads, bytes = string.char, string.byte, string.sub, {}, {}, {}

local function byte_of(number)
  local made = bytes[number] or char(number)
  bytes[number] = made
  return made
end

local function packed_number(n)
  local packed = packed_numbers[n] or cmsgpack.pack(n)
  packed_numbers[n] = packed
  return packed
end

-- What stands before a packed text of this length.
local function text_head(text)
  local head = text_heads[#text] or sub(cmsgpack.pack(text), 1, -#text - 1)
  text_heads[#text] = head
  return head
end

-- The head of a packed map with so many entries more, and where its own begin.
local function map_head(map, number)
  local head, rest = byte(map) or 0x80, 2
  if head == 0xde then
    number, rest = number + byte(map, 2) * 256 + byte(map, 3), 4
  else
    number = number + head - 0x80
  end
  if number < 16 then return byte_of(0x80 + number), rest end
  return char(0xde, math.floor(number / 256), number % 256), rest
end

-- A packed call `[args, kwargs]` with a value before its other arguments, as it is. What is no call stays one.
local function with_value(body, value)
  local array, kind = byte(body, 1, 2)
  local head, rest
  if array ~= 0x92 or not kind then return body end
  if kind >= 0x90 and kind <= 0x9f then
    head, rest = kind - 0x90, 3
  elseif kind == 0xdc and #body >= 4 then
    head, rest = byte(body, 3) * 256 + byte(body, 4), 5
  elseif kind == 0xdd and #body >= 6 then
    head, rest = struct.unpack('>I4', body, 3), 7
  else
    return body
  end
  head = head + 1
  if head < 16 then return '\146' .. byte_of(0x90 + head) .. value .. sub(body, rest) end
  local longer = head < 65536 and '\220' .. struct.pack('>I2', head) or '\221' .. struct.pack('>I4', head)
  return '\146' .. longer .. value .. sub(body, rest)
end

-- id, n       of the flow, and its number there
-- meta        as it was sent
-- takes       packed, what it takes by reference ('' = nothing), counted from `base`
-- added       whose list that is and how many were added to it, or nil
-- parent      the call that released it ('' = none)
-- expires_ms  after which it is not started (-1 = no bound)
local function meta_of(id, n, meta, takes, base, added, parent, expires_ms)
  local number, place, from, named, head_of_parent, expires = 1, '\164flow\146', '', '', '', ''
  if takes ~= '' then
    place = added and '\164flow\149' or base == 0 and '\164flow\147' or '\164flow\148'
    from = added and cmsgpack.pack(base, added) or base ~= 0 and cmsgpack.pack(base) or ''
  end
  if parent ~= '' then number, named, head_of_parent = 2, '\166parent', text_head(parent) end
  if expires_ms >= 0 then number, expires = number + 1, '\167expires' .. cmsgpack.pack(now + expires_ms) end
  local head, rest = map_head(meta, number)
  return head .. place .. text_head(id) .. id .. packed_number(n) .. takes .. from ..
    named .. head_of_parent .. parent .. expires .. sub(meta, rest)
end
