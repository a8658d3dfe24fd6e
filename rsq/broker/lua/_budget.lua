-- How much one call may touch: so many entries, and bodies of BUDGET bytes or one that is larger.
-- Redis reads streams by number, not by size. So entries are taken in steps, the first of one and each at most four times
-- the last: as many as would fit if all were as large as the largest so far. Where small ones precede large ones the bound is
-- passed by one step, of STEP at most; a step costs as much as one or two small entries.
local BUDGET, STEP = 1048576, 16

-- `ask` gives how many to take next, 0 = enough; `spend` is told the size of each that was taken.
local function budget(entries)
  local bytes, largest, step, self = BUDGET, 1, 1, {}
  function self.ask() return math.max(0, math.min(entries, step, math.floor(bytes / largest))) end
  function self.spend(size)
    entries, bytes = entries - 1, bytes - size
    if size > largest then largest = size end
    if step < STEP then step = math.min(STEP, step + 3) end
  end
  function self.used_up() return entries > 0 and self.ask() == 0 end
  return self
end

local function size_of(fields)
  -- As rsq writes it: the rest is short.
  if fields[5] == 'body' and fields[7] == 'meta' then return #fields[6] + #fields[8] end
  local size = 0
  for _, text in ipairs(fields) do size = size + #text end
  return size
end
