-- Most of what happens in flows, for a fraction of what _flow needs for it: calls have succeeded, and what waits for one of
-- them waits for others as well, or for it alone and starts at once. It comes to what `report` there would come to; of all
-- else nothing is done here. Needs _common and _ready.

local function steps(now)
-- include: _flow_layout
-- include: _flow_message
local OPEN, CALL, STARTED, BATCH, FAILED = 0, 1, 1, 1, 193
local WHOLE = NAMES .. string.sub(CALL_OF, 2)
local P = string.match(T, '^{[^}]*}')
local self, taken, order, open_for = { nodes_left = MOST_NODES, bytes_left = MOST_BYTES }, {}, {}, {}

-- Nothing that goes there has been revoked.
local function is_open(queue, priority)
  if open_for[queue] ~= priority then
    if redis.call('EXISTS', queue .. ':revoked') == 1 then return false end
    expect_delayed(priority, queue)
    open_for[queue] = priority
  end
  return true
end

-- The head of a flow in which so many more have succeeded; nil where more follows from that.
local function counted(head, number)
  local state, flags = string.byte(head, 1, 2)
  if state ~= STARTED or flags > BATCH then return end
  local calls, open, ok, bad, _, _, unsealed, touched = struct.unpack('>I4i4I4I4i4i4Bd', head, 7)
  open, ok = open - number, ok + number
  if now - touched >= PROLONG_MS or open + unsealed <= 0 then return end
  if flags == BATCH and unsealed == 0 and ok + bad >= calls then return end
  return string.sub(head, 1, 10) .. struct.pack('>i4I4', open, ok) .. string.sub(head, 19)
end

-- The only one that waits for a call that runs, -1 = none; nil where there is more to it.
local function behind(row)
  local state, kind, _, _, more = string.byte(row, 1, 5)
  if state ~= OPEN or kind ~= CALL or more ~= 0 then return end
  local base, out, outs = struct.unpack('>I4I4I4', row, BASE_AT)
  return outs == 0 and -1 or outs == 1 and out + base or nil
end

-- Node `m`, which waits for `n` alone, is released: gives its row from then on, and its call. Nil where there is more to it.
local function release(flow, n, value, parent, m, row)
  local state, kind = string.byte(row, 1, 2)
  local base = struct.unpack('>I4', row, BASE_AT)
  local queue, id, task, more, priority, single, takes, meta, body, rest = struct.unpack(WHOLE, row, NAMES_AT)
  if state ~= OPEN or kind ~= CALL or rest <= #row then return end
  if takes ~= '' then
    if single + base ~= n or value == '' or #value > INLINE_BYTES or string.byte(value) == FAILED then return end
    body = with_value(body, value)
  end
  local names = #queue + #id + #task + #more
  queue = P .. ':' .. queue
  if not is_open(queue, priority) then return end
  self.bytes_left = self.bytes_left - #row - #value
  meta = meta_of(flow, m, meta, '', 0, nil, parent, -1)
  return string.sub(row, 1, NAMES_AT + 7 + names), { priority, id, task, body, meta, queue }
end

-- What follows: `ended`, the arguments of HSET and how many they are, and the calls that are sent. Nil where there is more to it.
local function look(id, ended)
  local number, first, key = #ended / 3, tonumber(ended[1]), P .. '::flow:' .. id
  -- In a chain the next one follows.
  local ahead = name_of(first + 1)
  local names = { 'head', ended[1], ahead }
  for k = 2, number do names[k + 1] = ended[3 * k - 2] end
  local found = redis.call('HMGET', key, unpack(names))
  local head = found[1] and counted(found[1], number)
  if not head then return end
  -- As long as most are.
  local fields, i, left, sends = { key, 'head', head, false, false, false, false, false, false }, 3, nil, {}
  local seen = number > 1 and {}
  for k = 1, number do
    local name, value, row = ended[3 * k - 2], ended[3 * k - 1], found[k + 1]
    local m = row and behind(row)
    if not m or seen and seen[name] then return end
    if seen then seen[name] = true end
    fields[i + 1], fields[i + 2], i = name, '\1' .. string.sub(row, 2), i + 2
    if m >= 0 and not (left and left[m]) then
      local next_name = number == 1 and m == first + 1 and ahead or name_of(m)
      local following = next_name == ahead and number == 1 and found[3] or redis.call('HGET', key, next_name)
      local waits = struct.unpack('>I4', following, WAITS_AT)
      if waits > 1 then
        left = left or {}
        left[m] = tonumber(redis.call('HGET', key, next_name .. 'n') or waits)
        if not left[m] then return end
      else
        following, sends[#sends + 1] = release(id, tonumber(name), value, ended[3 * k], m, following)
        if not following then return end
        fields[i + 1], fields[i + 2], i = next_name, following, i + 2
      end
    end
    if left and left[m] then
      left[m] = left[m] - 1
      if left[m] < 1 then return end
      fields[i + 1], fields[i + 2], i = name .. 'v', value, i + 2
    end
  end
  if left then
    for m, waits in pairs(left) do fields[i + 1], fields[i + 2], i = name_of(m) .. 'n', waits, i + 2 end
  end
  self.nodes_left = self.nodes_left - number
  return { ended, fields, i, sends }
end

-- True where all that follows from this is written by `write`; false: then nothing is.
-- ended  of each call of a flow that has: its number as text, its value, its id
function self.take(id, ended)
  local bytes_left = self.bytes_left
  if self.nodes_left < #ended / 3 or bytes_left <= 0 then return false end
  local readable, changes = pcall(look, id, ended)
  if not readable or not changes then
    self.bytes_left = bytes_left
    return false
  end
  taken[id], order[#order + 1] = changes, id
  return true
end

-- Somebody else sees to this flow: gives what was taken of it, or nil.
function self.give_back(id)
  local changes = taken[id]
  taken[id] = nil
  return changes and changes[1]
end

-- Raises nothing.
function self.write()
  for _, id in ipairs(order) do
    local changes = taken[id]
    if changes then redis.call('HSET', unpack(changes[2], 1, changes[3])) end
    for _, send in ipairs(changes and changes[4] or {}) do
      local priority, task_id, task, body, meta, queue = unpack(send)
      if add_ready(priority, task_id, task, body, meta, queue) then wake(queue) end
    end
  end
end

return self
end
