-- Part of _flow: how a flow is stored, and what a script knows of it. All that changes is noted there until `write`.

local STATES = { 'started', 'failed', 'succeeded', 'cancelled', 'expired' }
-- Nodes that are read ahead at once, while they are small; and numbers in one field of a list that has grown.
local AHEAD, LIST_PAGE = 16, 1000
-- Flows by their ids, false = there is none; in the order in which they came up; and the nodes of each that are sure to
-- be asked for.
local known, order, awaited = {}, {}, {}

local function key_of(id) return P .. '::flow:' .. id end

local function take_in(f, n, row, name)
  local state, kind, policy, sink, more, waits, fails, base, out, outs = struct.unpack(EDGES, row)
  local node = {
    n = n, name = name, row = row, state = state, kind = kind, policy = policy, sink = sink == 1, more = more == 1, waits = waits,
    -- What it says of other nodes is counted from its base.
    fails = fails, base = base, out = out, outs = outs, changed = false, value = false, kept = false,
  }
  f.nodes[n] = node
  return node
end

local function know_fixed(f)
  if f.life_ms then return end
  local at
  f.ttl_ms, f.kept_ms, f.life_ms, f.lease_ms, f.success, f.complete, f.death, f.tail, f.up_node, at =
    struct.unpack(FIXED, f.fixed)
  f.up = string.sub(f.fixed, at)
end

local function read_flow(id)
  local key, numbers, names = key_of(id), awaited[id] or {}, {}
  for i, n in ipairs(numbers) do names[i] = name_of(n) end
  local found = redis.call('HMGET', key, 'head', unpack(names))
  local head = found[1]
  if not head then return redis.call('EXISTS', key) == 1 and { id = id, key = key, state = 'starting' } or nil end
  local state, flags, size, calls, open, ok, bad, sunk, failed, unsealed, touched, far, at = struct.unpack(COUNTS, head)
  struct.unpack(FIXED, head, at)
  local f = {
    id = id, key = key, nodes = {}, state = STATES[state], before = STATES[state], size = size, calls = calls, open = open,
    ok = ok, bad = bad, sunk = sunk, failed = failed, unsealed = unsealed, touched = touched, far = far, far_before = far,
    -- It is a batch with callbacks; and one that stands for a call of another flow.
    calls_back = flags % 2 == 1, above = flags % 4 >= 2, fixed = string.sub(head, at),
    -- Something in it was added beside a member.
    lists = flags >= 4,
  }
  for i, n in ipairs(numbers) do
    if found[i + 1] and not f.nodes[n] then take_in(f, n, found[i + 1], names[i]) end
  end
  return f
end

-- It is going to be asked for: then it is read with the flow itself.
function self.await(id, n)
  if n < 0 or n >= 2147483648 or n % 1 ~= 0 then return end
  local numbers = awaited[id]
  if numbers then numbers[#numbers + 1] = n else awaited[id] = { n } end
end

-- The flow, or nil where it is gone. One that cannot be read is `broken`.
function self.flow(id)
  if known[id] == nil then
    local readable, f = pcall(read_flow, id)
    if not readable then f = { id = id, key = key_of(id), broken = 'it cannot be read: ' .. tostring(f) } end
    known[id] = f or false
    if f then order[#order + 1] = f end
    local ended = stepping and stepping.give_back(id) or {}
    for i = 1, #ended, 3 do self.report(id, tonumber(ended[i]), true, ended[i + 1], ended[i + 2], false) end
  end
  return known[id] or nil
end

local function is_live(f) return f.state == 'started' or f.state == 'failed' end

-- A node, or nil: of those that a call has added some may still be kept elsewhere.
local function look_for(f, n)
  local node = f.nodes[n]
  if node then return node end
  local name = name_of(n)
  local row = f.rows and f.rows[n] or redis.call('HGET', f.key, name)
  return row and take_in(f, n, row, name) or nil
end

local function node_of(f, n) return look_for(f, n) or error('there is no node ' .. name_of(n)) end

-- A row as it was added, counted from 0, now from there.
local function counted_from(base, row)
  return string.sub(row, 1, BASE_AT - 1) .. struct.pack('>I4', base) .. string.sub(row, BASE_AT + 4)
end

-- One of a row of nodes, of which so many more will be asked for; nil as above.
local function node_ahead(f, n, more)
  if f.nodes[n] or f.rows and f.rows[n] then return look_for(f, n) end
  local number = math.min(more, AHEAD, nodes_left + 1, math.floor(bytes_left / (f.largest or MOST_BYTES)))
  if number <= 1 then
    local node = look_for(f, n)
    if node then f.largest = math.max(f.largest or 1, #node.row) end
    return node
  end
  local names = {}
  for i = 1, number do names[i] = name_of(n + i - 1) end
  for i, row in ipairs(redis.call('HMGET', f.key, unpack(names))) do
    local each = n + i - 1
    if row then f.largest = math.max(f.largest, #row) end
    if row and not f.nodes[each] and not (f.rows and f.rows[each]) then take_in(f, each, row, names[i]) end
  end
  return f.nodes[n]
end

-- The prefix of its queue, its id, its task, what is seldom said of it (packed), and where its call begins: behind the
-- row, where it has been released.
local function names_of(node)
  local queue, id, task, more, at = struct.unpack(NAMES, node.row, NAMES_AT)
  return P .. ':' .. queue, id, task, more, at
end

-- What is seldom said of a node: runs of those that wait for it, its errbacks, and beside whom it was added: what waits for
-- that one, and so for it.
local function more_of(node)
  local _, _, _, packed = names_of(node)
  local more = cmsgpack.unpack(packed)
  return more[1], more[2], more[4] or {}
end

-- Runs of the nodes that wait for it, counted from 0.
local function outs_of(node)
  local base, runs, _, beside = node.base, nil, nil, nil
  if node.more then runs, _, beside = more_of(node) end
  if node.outs > 0 then runs = { node.out, node.outs > 1 and 1 - node.outs or nil } end
  for i, part in ipairs(runs) do
    if part >= 0 then runs[i] = part + base end
  end
  for _, n in ipairs(beside or {}) do runs[#runs + 1] = n end
  return runs
end

-- One less to wait for. Gives how many are left.
local function count_down(f, node)
  if node.waits <= 1 then return 0 end
  node.left = (node.left or tonumber(redis.call('HGET', f.key, node.name .. 'n') or node.waits)) - 1
  node.changed = true
  return node.left
end

-- So many more to wait for.
local function count_up(f, node, number)
  local left = node.left or tonumber(redis.call('HGET', f.key, node.name .. 'n') or node.waits)
  node.left, node.waits, node.changed, f.lists = left + number, node.waits + number, true, true
  node.row = string.sub(node.row, 1, WAITS_AT - 1) .. struct.pack('>I4', node.waits) .. string.sub(node.row, WAITS_AT + 4)
end

-- The values of these it takes, too, at the end of its list.
local function list_behind(f, node, numbers)
  node.listed = node.listed or tonumber(redis.call('HGET', f.key, node.name .. 'm') or 0)
  node.lists = node.lists or {}
  for _, n in ipairs(numbers) do
    local name = node.name .. 'm' .. math.floor(node.listed / LIST_PAGE)
    node.lists[name] = (node.lists[name] or redis.call('HGET', f.key, name) or '') .. struct.pack('>I4', n)
    node.listed = node.listed + 1
  end
  node.changed = true
end

-- What waits for a node takes the values of these as well, which are added beside it.
local function take_beside(f, beside, base)
  local numbers = beside[2]
  for i, n in ipairs(numbers) do numbers[i] = n + base end
  for _, n in ipairs(beside[1]) do list_behind(f, node_of(f, n), numbers) end
end

-- How many were added to what a node takes as a list, with whose list that is; nil where there are none.
local function added_to(f, node, takes, from)
  local kind = string.byte(takes) or 0
  if not f.lists or kind < 0x90 or kind > 0x9f and kind ~= 0xdc and kind ~= 0xdd then return end
  local owner = from and from.kind == JOIN and from or node
  owner.listed = owner.listed or tonumber(redis.call('HGET', f.key, owner.name .. 'm') or 0)
  return owner.listed > 0 and { owner.n, owner.listed } or nil
end

-- What it gave is needed later.
local function keep(node) node.kept, node.changed = true, true end

local function value_of(f, node)
  if not node.value then node.value = redis.call('HGET', f.key, node.name .. 'v') end
  return node.value or ''
end

-- What a node gave, where it is kept and small enough to be put in front of arguments.
local function small_value(f, node)
  if not node.value and redis.call('HSTRLEN', f.key, node.name .. 'v') > INLINE_BYTES then return end
  local value = value_of(f, node)
  if value ~= '' and #value <= INLINE_BYTES and string.sub(value, 1, 1) ~= FAILED then return value end
end

-- The node that failed, so that this one could not run; nil for one that failed itself, and for a value.
local function origin_of(value)
  if string.sub(value, 1, 1) == FAILED and string.byte(value, 2) ~= 0x94 then
    return cmsgpack.unpack(string.sub(value, 2))
  end
end

-- The packed result of whichever call failed, so that this one could not run.
local function failure_of(f, n)
  local value = value_of(f, node_of(f, n))
  local origin = origin_of(value)
  if origin then value = value_of(f, node_of(f, origin)) end
  return string.sub(value, 1, 1) == FAILED and not origin_of(value) and string.sub(value, 2) or SKIPPED
end
