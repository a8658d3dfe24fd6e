-- What a call knows of its flow: the first entry of its meta. Needs nothing.

-- Gives the flow's id and the call's number in it, or nil. Its arguments, and the rest of the meta, are not looked at.
local function flow_in(meta)
  local key = string.sub(type(meta) == 'string' and meta or '', 1, 8)
  local at = string.sub(key, 2, 6) == '\164flow' and 7 or string.sub(key, 4, 8) == '\164flow' and 9
  if not at or #meta < at then return end
  -- An array: id, number, what it takes, from where that counts, what was added to that.
  local kind = string.byte(meta, at)
  if kind < 0x92 or kind > 0x95 then return end
  local readable, _, id, number = pcall(cmsgpack.unpack_limit, meta, 2, at)
  if readable and type(id) == 'string' and type(number) == 'number' then return id, number end
end
