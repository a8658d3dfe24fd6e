-- What rows of calls that end say of flows: rows of their own, behind the others. Needs _settle; rows are at hand.

-- Those whose outcomes are ours to write, as `look_up` takes them; nil where none of the calls is part of a flow. And
-- where the rows of the calls end, which begin at `first`, as the `number` reports end at `last`.
local function members_in(first, last, number, consumer, stream, taken)
  if number == 0 then return nil, last end
  local members, reports = {}, last - number * REPORTED.WIDTH
  -- What it has begun before may be under way yet.
  local pending = taken and {} or pending_of(consumer, stream, 2 * number + 10)
  for k = 0, number - 1 do
    local i, row = reports + 1 + k * REPORTED.WIDTH, first + k * WIDTH
    local id, value = ARGV[row + ID], ARGV[i + REPORTED.VALUE]
    if pending[ARGV[row + ENTRY_ID]] or is_ours(consumer, stream, ARGV[row + ENTRY_ID], id, taken) then
      if value == '' then value = string.sub(ARGV[row + RESULT], tonumber(ARGV[i + REPORTED.SKIP]) + 1) end
      members[id] = { ARGV[i + REPORTED.FLOW], tonumber(ARGV[i + REPORTED.NODE]), value }
    end
  end
  return members, reports
end
