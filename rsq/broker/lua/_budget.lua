-- How much one call may touch: so many entries, and bodies of BUDGET bytes or one that is larger.
-- Redis reads streams by number, not by size. So entries are taken in steps, the first of one and each at most four times
-- the last: as many as would fit if all were as large as the largest so far. Where small ones precede large ones the bound is
-- passed by one step, of STEP at most; a step costs as much as one or two small entries.
local BUDGET, STEP = 1048576, 16

-- `ask` gives how many to take next, 0 = enough; `spend` is told how many were taken, and what `sizes` gives of them.
local function budget(entries)
  local bytes, largest, step, self = BUDGET, 1, 1, {}
  function self.ask() return math.max(0, math.min(entries, step, math.floor(bytes / largest))) end
  function self.spend(number, size, largest_of_them)
    entries, bytes = entries - number, bytes - size
    if largest_of_them > largest then largest = largest_of_them end
    if step < STEP then step = math.min(STEP, step + 3 * number) end
  end
  function self.used_up() return entries > 0 and self.ask() == 0 end
  return self
end

-- Bytes of all these entries, as a stream gives them, and of the largest.
local function sizes(entries)
  local all, largest = 0, 0
  for i = 1, #entries do
    local fields, size = entries[i][2], 0
    -- As rsq writes it: the rest is short.
    if fields[5] == 'body' and fields[7] == 'meta' then
      size = #fields[6] + #fields[8]
    else
      for j = 1, #fields do size = size + #fields[j] end
    end
    all = all + size
    if size > largest then largest = size end
  end
  return all, largest
end
