-- Part of _flow: what follows, edge by edge, as far as the budget goes.

-- One node that waits for `from`, which has come to that end. Gives true where the value of `from` is needed later.
function visit(f, from, how, parent, origin, node)
  if not is_live(f) then return end
  if how == 'blamed' or how == 'bad' and node.policy ~= CONTINUE then
    if node.policy ~= CONTINUE and from.state >= BAD then doom(f, node, origin, parent) end
  elseif how ~= 'late' or node.policy ~= CONTINUE then
    if from and count_down(f, node) > 0 then return true end
    return release(f, node, parent, nil, from) or node.kind == JOIN
  end
end

local function spent()
  nodes_left = nodes_left - 1
  return nodes_left < 0 or bytes_left <= 0
end

-- The errbacks of a node that has failed. An immutable one is told nothing.
local function tell_errbacks(item)
  local f, node, _, errbacks = item.flow, item.node, more_of(item.node)
  local queue, _, task = names_of(node)
  local about = { string.format('%.0f', node.n), '', string.sub(queue, #P + 2), task }
  while item.at < #errbacks do
    if spent() then return false end
    about[2] = errbacks[item.at + 2]
    local told = about[2] == '' and '' or cmsgpack.pack(table.concat(about, ' '))
    local n = errbacks[item.at + 1]
    release(f, node_of(f, n < 0 and -1 - n or n + node.base), '', told)
    item.at = item.at + 2
  end
  return true
end

-- A page of nodes that a call has added, and that were kept until it succeeded; they count already. Where the flow has
-- ended meanwhile they end with it.
local function take_page(item)
  local f, key, base = item.flow, P .. '::added:' .. item.packed, item.base
  local head, rows = unpack(cmsgpack.unpack(redis.call('HGET', key, item.at)))
  head = cmsgpack.unpack(head)
  if head.beside then take_beside(f, cmsgpack.unpack(head.beside), base) end
  f.rows = f.rows or {}
  for i, row in ipairs(rows) do f.rows[base + i - 1] = counted_from(base, row) end
  if is_live(f) then
    self.resume(f.id, -1, 'roots', 0, item.parent, -1, head.roots, base)
  else
    self.resume(f.id, -1, 'close', 0, '', -1, cmsgpack.pack({ 0, #rows > 1 and 1 - #rows or nil }), base)
  end
  nodes_left = nodes_left - #rows
  item.at, item.base = item.at + 1, base + #rows
  if redis.call('HLEN', key) > item.at then return false end
  stale[#stale + 1] = { f, key }
  return true
end

-- Carries on where it stopped. False where the budget is used up.
local function step(item)
  if item.how == 'tell' then return tell_errbacks(item) end
  if item.how == 'take' then return take_page(item) end
  local f, passed, last = item.flow, 0, -1
  local runs, base = item.runs, item.base
  if not runs then runs, base = outs_of(item.node), 0 end
  for _, part in ipairs(runs) do
    local from, length = part, 1
    if part < 0 then from, length = last + 1, -part end
    for n = from + math.max(0, item.at - passed), from + length - 1 do
      if spent() then return false end
      local node = f.nodes[n + base] or node_ahead(f, n + base, from + length - n)
      if item.how == 'close' then
        if node then close(f, node) end
      elseif visit(f, item.node, item.how, item.parent, item.origin, node) and item.node then
        keep(item.node)
      end
      item.at = item.at + 1
    end
    passed, last = passed + length, from + length - 1
  end
  return true
end

local function guarded(f, act, ...)
  local fine, answer = pcall(act, ...)
  if fine then return answer end
  f.broken = 'what it says of its nodes cannot be read: ' .. tostring(answer)
  return true
end

-- The first call has died of a flow that stands for a call of another one: those around it hear of that, too.
local function tell_around(f)
  for _ = 1, MOST_ABOVE do
    if not f.above or not is_live(f) then return end
    know_fixed(f)
    f = self.flow(f.up)
    if not f or f.broken or f.mourns then return end
    f.mourns = true
  end
end

-- The callbacks of a batch: each once, and not before everything else of this script.
local function call_back(f)
  know_fixed(f)
  if f.death >= 0 and (f.bad > 0 or f.mourns or f.abandoned) then release(f, node_of(f, f.death), '') end
  if f.unsealed > 0 or f.ok + f.bad < f.calls then return end
  if f.complete >= 0 then release(f, node_of(f, f.complete), '') end
  if f.success >= 0 and f.ok == f.calls then release(f, node_of(f, f.success), '') end
end

-- What follows from all that was said, as far as the budget goes.
function self.go_on()
  while first <= #work and not self.used_up() do
    local item = work[first]
    if item.flow.broken or guarded(item.flow, step, item) then first = first + 1 end
  end
  for i = first, #work do
    if work[i].node then keep(work[i].node) end
  end
  for _, f in ipairs(order) do
    if f.mourns and not f.broken then guarded(f, tell_around, f) end
  end
  for _, f in ipairs(order) do
    if f.calls_back and is_live(f) and not f.broken then guarded(f, call_back, f) end
  end
end

local function find_item(item, n, packed)
  local f = item.flow
  if n >= 0 then
    item.node = node_of(f, n)
    return
  end
  item.packed = packed
  if item.how == 'take' then return end
  local whole = packed == ''
  if whole then packed = redis.call('HGET', f.key, item.how == 'close' and 'sinks' or 'roots') end
  local runs = cmsgpack.unpack(packed)
  item.runs = runs
  if item.how == 'close' then
    -- Those that people wait for come first.
    if whole then runs[#runs + 1], runs[#runs + 2] = 0, f.size > 1 and 1 - f.size or nil end
    local result, terminate = unpack(redis.call('HMGET', f.key, 'result', 'terminate'))
    f.result, f.terminate = f.result or result or SKIPPED, f.terminate or tonumber(terminate) or 0
  end
end

-- Where something was left, `how` and what else tells how far it came.
function self.resume(id, n, how, at, parent, origin, packed, base)
  local f, ends = self.flow(id), how == 'close' or how == 'tell' or how == 'take'
  if not f and how == 'take' then stale[#stale + 1] = { {}, P .. '::added:' .. packed } end
  if not f or f.broken or f.state == 'succeeded' or not is_live(f) and not ends then return end
  local item = { flow = f, how = how, at = at, parent = parent, origin = origin, base = base or 0 }
  guarded(f, find_item, item, n, packed or '')
  if not f.broken then work[#work + 1] = item end
end
