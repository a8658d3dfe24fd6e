-- Part of _flow: what is put into a call when it is released.

-- A packed map with entries before its own.
local function with_entries(map, number, entries)
  local head, rest = string.byte(map, 1) or 0x80, 2
  if head == 0xde then
    number, rest = number + string.byte(map, 2) * 256 + string.byte(map, 3), 4
  else
    number = number + head - 0x80
  end
  local new = number < 16 and string.char(0x80 + number) or string.char(0xde, math.floor(number / 256), number % 256)
  return new .. entries .. string.sub(map, rest)
end

-- A packed call `[args, kwargs]` with a value before its other arguments, as it is. What is no call stays one.
local function with_value(body, value)
  local kind, head, rest = string.byte(body, 2), nil, nil
  if string.byte(body, 1) ~= 0x92 or not kind then return body end
  if kind >= 0x90 and kind <= 0x9f then
    head, rest = kind - 0x90, 3
  elseif kind == 0xdc and #body >= 4 then
    head, rest = string.byte(body, 3) * 256 + string.byte(body, 4), 5
  elseif kind == 0xdd and #body >= 6 then
    head, rest = struct.unpack('>I4', body, 3), 7
  else
    return body
  end
  head = head + 1
  local array = head < 16 and string.char(0x90 + head) or head < 65536 and '\220' .. struct.pack('>I2', head)
    or '\221' .. struct.pack('>I4', head)
  return '\146' .. array .. value .. string.sub(body, rest)
end

-- id, n       of the flow, and its number there
-- meta        as it was sent
-- takes       packed, what it takes by reference ('' = nothing), counted from `base`
-- added       whose list that is and how many were added to it, or nil
-- parent      the call that released it ('' = none)
-- expires_ms  after which it is not started (-1 = no bound)
local function meta_of(id, n, meta, takes, base, added, parent, expires_ms)
  local number, entries, place = 1, nil, cmsgpack.pack(id, n)
  if takes == '' then
    entries = '\164flow\146' .. place
  elseif added then
    entries = '\164flow\149' .. place .. takes .. cmsgpack.pack(base, added)
  elseif base == 0 then
    entries = '\164flow\147' .. place .. takes
  else
    entries = '\164flow\148' .. place .. takes .. cmsgpack.pack(base)
  end
  if parent ~= '' then number, entries = number + 1, entries .. '\166parent' .. cmsgpack.pack(parent) end
  if expires_ms >= 0 then number, entries = number + 1, entries .. '\167expires' .. cmsgpack.pack(now + expires_ms) end
  return with_entries(meta, number, entries)
end
