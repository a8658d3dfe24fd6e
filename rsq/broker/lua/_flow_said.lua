-- Part of _flow: what scripts say of a flow.

-- A field of its own is to be set.
local function also(f, name, value)
  f.fields = f.fields or {}
  f.fields[#f.fields + 1], f.fields[#f.fields + 2] = name, value
end

local function stands_in(f, n) return f and not f.broken and n >= 0 and n < f.size and n % 1 == 0 end

local function settle_number(f, n, ...) return settle_node(f, node_of(f, n), ...) end

-- A member has ended, and its outcome is ours to write.
function self.report(id, n, ok, value, task_id, loud, unheard)
  local f = self.flow(id)
  if not f then self.strayed = self.strayed + 1 end
  if f and f.state ~= 'starting' and f.state ~= 'succeeded' and stands_in(f, n) then
    guarded(f, settle_number, f, n, ok, value, task_id, loud and is_live(f), unheard)
  end
end

-- Whether `act` was done to a node of a flow that goes on.
local function done_to(id, n, act)
  local f = self.flow(id)
  if not f or not is_live(f) or not stands_in(f, n) then return false end
  local done = guarded(f, act, f, n)
  return done and not f.broken
end

local function revoke_node(f, n)
  local node = node_of(f, n)
  local _, task_id, _, _, at = names_of(node)
  if at > #node.row or node.state ~= OPEN then return false end
  node.row = string.sub(node.row, 1, at - 1)
  settle_node(f, node, false, FAILED .. REVOKED_RESULT, task_id, false, true)
  return true
end

-- A call that waits is not to run. False where it waits no more.
function self.revoke(id, n) return done_to(id, n, revoke_node) end

local function rerun_node(f, n)
  local node = node_of(f, n)
  if node.state == BAD then node.state, node.changed, f.open = AGAIN, true, f.open + 1 end
  return node.state == AGAIN
end

-- A dead letter is to run again. False where its flow does not wait for it any more.
function self.rerun(id, n) return done_to(id, n, rerun_node) end

-- It ends before its time, with this packed result for whoever waits for it. `terminate`: what runs is interrupted.
function self.stop(id, state, result, terminate)
  local f = self.flow(id)
  if not f or f.broken or not (is_live(f) or terminate and f.state == 'cancelled') then return false end
  local packed = redis.call('HGET', f.key, 'queues')
  f.state, f.terminate, f.marked = state, terminate and 1 or 0, true
  f.queues = cmsgpack.unpack(packed or '\144')
  for i = 1, #f.queues, 3 do
    f.queues[i] = P .. ':' .. f.queues[i]
    expect('zset', f.queues[i] .. ':revoked')
  end
  f.result = result
  self.resume(id, -1, 'close', 0, '', -1)
  return true
end

-- Of a new flow that would stand for a call of another one, which has ended before its time: the id of that one, and how
-- the call ends with it: its number, its packed result, for how long that is kept, and the way. Nil of others.
function self.over(head)
  local new = { fixed = head.fixed }
  know_fixed(new)
  local f = new.up ~= '' and self.flow(new.up)
  if not f or f.broken or f.state ~= 'cancelled' and f.state ~= 'expired' then return end
  know_fixed(f)
  local result = redis.call('HGET', f.key, 'result') or SKIPPED
  return f.id, new.up_node, result, string.format('%.0f', f.ttl_ms), f.state == 'expired' and 'expired' or 'revoked'
end

-- A new flow.
-- head  as in flow.lua
-- rows  those of its nodes that are not stored yet, by number
function self.start(id, head, rows)
  local f = {
    id = id, key = key_of(id), nodes = {}, rows = rows, state = 'started', size = head.size, calls = head.calls,
    open = head.open, ok = 0, bad = 0, sunk = 0, failed = -1, unsealed = head.unsealed, touched = 0, far = now,
    fixed = head.fixed, fields = {
      'created', string.format('%.0f', now), 'roots', head.roots, 'sinks', head.sinks, 'queues', head.queues,
      'description', head.description,
    },
  }
  know_fixed(f)
  f.calls_back, f.above = f.success >= 0 or f.complete >= 0 or f.death >= 0, f.up ~= ''
  known[id], order[#order + 1] = f, f
  if f.above then
    local above = self.flow(f.up)
    if above and not above.broken then
      also(above, f.up_node .. 's', id)
    end
  end
  local item = { flow = f, how = 'roots', at = 0, parent = '', origin = -1, packed = '', base = 0 }
  item.runs = cmsgpack.unpack(head.roots)
  work[#work + 1] = item
end

-- Whether what waits for the one beside which nodes are added waits for these, too: `beside` holds what that is, and which
-- nodes; of those that are kept elsewhere it is so many. Not where it has been released.
local function wait_beside(f, beside, base, kept)
  local targets, numbers = {}, beside[2]
  for i, n in ipairs(beside[1]) do
    local node = node_of(f, n)
    local _, _, _, _, at = names_of(node)
    if node.state == OK or node.kind == CALL and at > #node.row then return false end
    targets[i] = node
  end
  for _, node in ipairs(targets) do count_up(f, node, #numbers + kept) end
  take_beside(f, beside, base)
  return true
end

-- Calls of it go to these queues, too: there it is marked where it is cancelled.
local function know_queues(f, names)
  if not f.goes_to then
    f.goes_to, f.queue_known = cmsgpack.unpack(redis.call('HGET', f.key, 'queues') or '\144'), {}
    for i = 1, #f.goes_to, 3 do f.queue_known[f.goes_to[i]] = true end
  end
  local before = #f.goes_to
  for _, name in ipairs(names) do
    if not f.queue_known[name] then
      f.queue_known[name] = true
      for _, part in ipairs({ name, 0, 0 }) do f.goes_to[#f.goes_to + 1] = part end
    end
  end
  if #f.goes_to > before then also(f, 'queues', cmsgpack.pack(f.goes_to)) end
end

-- More nodes, which count their edges from 0. 'added' where they stand, also since an earlier time; 'closed' where the flow
-- has ended, or is sealed and the one that adds is none of its members that run; 'full' where it would hold too many: one
-- of which a member that has succeeded says so cannot go on.
-- key    names them: they are added once
-- head   as in flow_add; of one that has kept some of its nodes elsewhere also kept: packed, the name of these, number of
--        pages, nodes, calls, open ones, and how many of them stand beside others. They come first
-- rows   of the nodes
function self.add(id, key, head, rows, inside, parent)
  local f = self.flow(id)
  if not f or f.broken or not is_live(f) then return 'closed' end
  f.pages, f.rows = f.pages or {}, f.rows or {}
  if f.pages[key] or redis.call('HEXISTS', f.key, '+' .. key) == 1 then return 'added' end
  if f.unsealed == 0 and not inside then return 'closed' end
  local name, pages, size, calls, open, beside = unpack(head.kept and cmsgpack.unpack(head.kept) or { '', 0, 0, 0, 0, 0 })
  if f.size + size + #rows > head.most then
    if inside then f.broken = string.format('it would hold more than %d calls (max_flow_calls)', head.most) end
    return 'full'
  end
  local there = pages > 0 and redis.pcall('HLEN', P .. '::added:' .. name)
  if there and (type(there) ~= 'number' or there < pages) then
    f.broken = string.format('of what %s has added %d pages are gone', parent, pages)
    return 'closed'
  end
  local base = f.size + size
  if head.beside and not guarded(f, wait_beside, f, cmsgpack.unpack(head.beside), base, beside) then
    return 'closed'
  end
  if there then
    self.taken_in[name] = true
    later[#later + 1] = { flow = f, how = 'take', at = 0, parent = parent, origin = -1, packed = name, base = f.size }
  end
  guarded(f, know_queues, f, cmsgpack.unpack(head.queues))
  f.pages[key] = true
  also(f, '+' .. key, base)
  if base == 0 then f.touched = 0 end
  f.size, f.open, f.calls = base + #rows, f.open + open + head.open, f.calls + calls + head.calls
  for i, row in ipairs(rows) do f.rows[base + i - 1] = counted_from(base, row) end
  local item = { flow = f, how = 'roots', at = 0, parent = parent, origin = -1, packed = head.roots, base = base }
  item.runs = cmsgpack.unpack(head.roots)
  work[#work + 1] = item
  return 'added'
end

-- Nothing is added any more, but by members that run. `late`: nobody has said so, and nobody will.
function self.seal(id, late)
  local f = self.flow(id)
  if not f or f.broken or not is_live(f) or f.unsealed == 0 then return false end
  f.unsealed, f.touched, f.abandoned = 0, 0, late
  if late then also(f, 'abandoned', 1) end
  return true
end

-- Whoever fills it is still there.
function self.keep_open(id)
  local f = self.flow(id)
  if not f or f.broken or not is_live(f) or f.unsealed == 0 then return false end
  f.renewed = true
  return true
end
