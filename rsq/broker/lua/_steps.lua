-- Most of what happens in flows, for a fraction of what _flow needs for it: calls have succeeded, and what waits for one of
-- them waits for others as well, or for it alone and starts at once. It comes to what `report` there would come to; of all
-- else nothing is done here. Needs _common and _ready.
-- It is the hot path of chains, where each global, each table and each text costs: so none is made twice.

local function steps(now)
-- include: _flow_layout
-- include: _flow_message
local OPEN, CALL, STARTED, BATCH, FAILED = 0, 1, 1, 1, 193
-- So much is known of a call that is sent.
local SENT = 6
-- Of COUNTS and EDGES what is asked for here; and where some of the former stand.
local COUNTED, FOLLOWING, CALLS_AT, BAD_AT = '>c10i4I4xxxxxxxxxxxxBd', '>BBxxxI4xxxxI4', 7, 19
local read, byte, sub, call, spread = struct.unpack, string.byte, string.sub, redis.call, unpack
local WHOLE, P = NAMES .. sub(CALL_OF, 2), string.match(T, '^{[^}]*}')
local self, taken, order, streams, numbers, after = {}, {}, {}, {}, {}, {}
local nodes_left, bytes_left = MOST_NODES, MOST_BYTES

-- What of the budget is left.
function self.left() return nodes_left, bytes_left end

-- The number that a text says, and the text for the one after it. In a commit they are much the same.
local function number_of(name)
  local n = numbers[name]
  if n then return n, after[name] end
  n = tonumber(name)
  numbers[name], after[name] = n, name_of(n + 1)
  return n, after[name]
end

-- The stream of calls with this priority in the queue of this name: { its name, the prefix of the queue, the priority }. Nil
-- where something that goes there has been revoked.
local function open_stream(name, priority)
  local stream = streams[name]
  if stream and stream[3] == priority then return stream end
  local queue = P .. ':' .. name
  if not stream and call('EXISTS', queue .. ':revoked') == 1 then return end
  expect_delayed(priority, queue)
  stream = { stream_of(priority, queue), queue, priority }
  streams[name] = stream
  return stream
end

-- The head of a flow in which so many more have succeeded; nil where more follows from that.
local function counted(head, number)
  local first, open, ok, unsealed, touched = read(COUNTED, head)
  local state, flags = byte(first, 1, 2)
  if state ~= STARTED or flags > BATCH then return end
  open, ok = open - number, ok + number
  if now - touched >= PROLONG_MS or open + unsealed <= 0 then return end
  if flags == BATCH and unsealed == 0 and ok + read('>I4', head, BAD_AT) >= read('>I4', head, CALLS_AT) then return end
  return first .. struct.pack('>i4I4', open, ok) .. sub(head, BAD_AT)
end

-- The only one that waits for a call that runs, -1 = none; nil where there is more to it.
local function behind(row)
  local state, kind, _, _, more = byte(row, 1, 5)
  if state ~= OPEN or kind ~= CALL or more ~= 0 then return end
  local base, out, outs = read('>I4I4I4', row, BASE_AT)
  return outs == 0 and -1 or outs == 1 and out + base or nil
end

-- Node `m`, which waits for `n` alone, is released: gives its row from then on, and its call. Nil where there is more to it.
local function release(flow, n, value, parent, m, row, state, kind, base)
  local name, id, task, more, priority, single, takes, meta, body, rest = read(WHOLE, row, NAMES_AT)
  if state ~= OPEN or kind ~= CALL or rest <= #row then return end
  if takes ~= '' then
    if single + base ~= n or value == '' or #value > INLINE_BYTES or byte(value) == FAILED then return end
    body = with_value(body, value)
  end
  local stream = open_stream(name, priority)
  if not stream then return end
  bytes_left = bytes_left - #row - #value
  meta = meta_of(flow, m, meta, '', 0, nil, parent, -1)
  return sub(row, 1, NAMES_AT + 7 + #name + #id + #task + #more), stream, id, task, body, meta
end

-- The fields that are asked for: the head, the nodes of these calls, and one more.
local function fields_of(ended, number, ahead)
  local names = { 'head', ended[1], ahead }
  for k = 2, number do names[k + 1] = ended[3 * k - 2] end
  return spread(names)
end

-- What follows, nil where there is more to it: from the third on the arguments of HSET, up to the number that is given as
-- well; before them `ended`, and what `release` gave of each call that is sent, one behind the other, or false.
local function look(id, ended, number)
  local key, first, ahead = P .. '::flow:' .. id, number_of(ended[1])
  -- In a chain the next one follows.
  local found = number == 1 and call('HMGET', key, 'head', ended[1], ahead) or
    call('HMGET', key, fields_of(ended, number, ahead))
  local head = found[1] and counted(found[1], number)
  if not head then return end
  -- As long as most are.
  local changes, i, left = { ended, false, key, 'head', head, false, false, false, false }, 5, nil
  local seen = number > 1 and {}
  for k = 1, number do
    local name, value, row = ended[3 * k - 2], ended[3 * k - 1], found[k + 1]
    local m = row and behind(row)
    if not m or seen and seen[name] then return end
    if seen then seen[name] = true end
    changes[i + 1], changes[i + 2], i = name, '\1' .. sub(row, 2), i + 2
    if m >= 0 and not (left and left[m]) then
      local next_to = number == 1 and m == first + 1
      local next_name = next_to and ahead or name_of(m)
      local following = next_to and found[3] or call('HGET', key, next_name)
      local state, kind, waits, base = read(FOLLOWING, following)
      if waits > 1 then
        left = left or {}
        left[m] = tonumber(call('HGET', key, next_name .. 'n') or waits)
        if not left[m] then return end
      else
        local send = { release(id, k == 1 and first or number_of(name), value, ended[3 * k], m, following, state, kind, base) }
        if not send[1] then return end
        changes[i + 1], changes[i + 2], i = next_name, send[1], i + 2
        local sends = changes[2]
        for part = 1, sends and SENT or 0 do sends[#sends + 1] = send[part] end
        changes[2] = sends or send
      end
    end
    if left and left[m] then
      left[m] = left[m] - 1
      if left[m] < 1 then return end
      changes[i + 1], changes[i + 2], i = name .. 'v', value, i + 2
    end
  end
  if left then
    for m, waits in pairs(left) do changes[i + 1], changes[i + 2], i = name_of(m) .. 'n', waits, i + 2 end
  end
  return changes, i
end

-- Takes all flows of which all that follows from this is written by `write`: of others nothing is.
-- flows    their ids
-- by_flow  of each call of a flow that has ended: its number as text, its value, its id
function self.take(flows, by_flow)
  local at, bytes_before = 0, nil
  local function look_on()
    while at < #flows do
      at = at + 1
      local id = flows[at]
      local ended = by_flow[id]
      local number = #ended / 3
      bytes_before = bytes_left
      if nodes_left >= number and bytes_left > 0 then
        local changes, length = look(id, ended, number)
        if changes then
          local last = #order
          taken[id], order[last + 1], order[last + 2], nodes_left = changes, id, length, nodes_left - number
        else
          bytes_left = bytes_before
        end
      end
    end
  end
  -- One that cannot be read holds nobody else up.
  while not pcall(look_on) do bytes_left = bytes_before end
end

-- Whether all that follows for this flow is written here.
function self.has(id) return taken[id] ~= nil end

-- Somebody else sees to this flow: gives what was taken of it, or nil.
function self.give_back(id)
  local changes = taken[id]
  taken[id] = nil
  return changes and changes[1]
end

-- Raises nothing.
function self.write()
  for i = 1, #order, 2 do
    local changes = taken[order[i]]
    if changes then
      call('HSET', spread(changes, 3, order[i + 1]))
      local sends = changes[2] or {}
      for k = 1, #sends, SENT do
        local _, stream, id, task, body, meta = spread(sends, k, k + SENT - 1)
        if stream[3] == 0 then
          add_to(stream[1], id, task, body, meta)
        elseif add_ready(stream[3], id, task, body, meta, stream[2]) then
          wake(stream[2])
        end
      end
    end
  end
end

return self
end
