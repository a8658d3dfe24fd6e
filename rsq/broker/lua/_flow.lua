-- Flows: what follows when a node of one ends, see docs/protocol.md. Needs _common, _ready and _calls.
-- First everything is read and worked out in memory: `start`, `report`, `cancel` and the like say what happens, and
-- `go_on` what follows from it, up to one budget; what is beyond is left to `go_on.lua`. Then come the script's own
-- writes, then `write`, which raises nothing. A flow that cannot be read fails by itself, and holds nobody else up.
-- Work: 200 nodes that are released, ended or counted down, and 512 KiB of what they bring, or one that is larger.

local JOIN, CALL, ERRBACK = 0, 1, 2
local FAIL, SKIP, CONTINUE = 0, 1, 2
-- Before a value that is a failure: the packed result of the call that failed, or the number of the node that did.
local FAILED = '\193'

local function store_node(key, n, row, call)
  if call then redis.call('HSET', key, n, row, n .. 'c', call) else redis.call('HSET', key, n, row) end
end

local function flows(now)
  local MOST_NODES, MOST_BYTES, INLINE_BYTES, PROLONG_MS = 200, 524288, 65536, 60000
  -- For so long it is remembered that a flow was cancelled of whose calls nobody knows where they are.
  local FORGET_MS = 86400000
  local P = string.match(T, '^{[^}]*}')
  local FLOWS, TODO = P .. '::flows', P .. '::todo'
  -- What the fields `counts` and `fixed` of a head hold, in this order.
  local COUNTS = { 'size', 'calls', 'open', 'ok', 'bad', 'stained', 'sunk', 'failed', 'unsealed', 'touched', 'far' }
  local FIXED = {
    'ttl_ms', 'kept_ms', 'life_ms', 'lease_ms', 'success', 'complete', 'death', 'tail', 'up', 'up_node',
  }
  local SKIPPED = cmsgpack.pack({ 'REVOKED', 1, 0, 'upstream' })
  local REVOKED_RESULT = cmsgpack.pack({ 'REVOKED', 1, 0, 'revoked' })
  local self, known, order = { strayed = 0 }, {}, {}
  local work, first, nodes_left, bytes_left = {}, 1, MOST_NODES, MOST_BYTES
  local claimed, some_revoked = {}, {}

  function self.used_up() return nodes_left <= 0 or bytes_left <= 0 end

  local function key_of(part, id) return P .. '::' .. part .. ':' .. id end

  -- A flow as it is now, with what changes noted in it: `state`, the numbers, and by node `bits`, `counts`, `values`.
  local function new_flow(id)
    local f = { id = id, head = key_of('flow', id), node_key = key_of('flow-calls', id) }
    f.value_key, f.ok_key, f.bad_key = key_of('flow-values', id), key_of('flow-ok', id), key_of('flow-bad', id)
    f.nodes, f.bits, f.moved, f.counts, f.values, f.kept, f.waiting, f.rerun = {}, {}, {}, {}, {}, {}, {}, {}
    f.sends, f.told, f.hastened, f.rows, f.pages, f.replaced = {}, {}, {}, {}, {}, {}
    f.counted, f.released, f.stale = {}, {}, {}
    return f
  end

  local function take_in(f, names, packed)
    local readable, values = pcall(cmsgpack.unpack, packed)
    if not readable or type(values) ~= 'table' or #values < #names then
      error('the head of flow ' .. f.id .. ' cannot be read', 0)
    end
    for i, name in ipairs(names) do f[name] = values[i] end
  end

  local function read_flow(id)
    local f = new_flow(id)
    local state, counts, fixed = unpack(redis.call('HMGET', f.head, 'state', 'counts', 'fixed'))
    if not state then return end
    f.state, f.before = state, state
    if state == 'starting' then return f end
    take_in(f, COUNTS, counts)
    take_in(f, FIXED, fixed)
    f.callbacks = f.success >= 0 or f.complete >= 0 or f.death >= 0
    f.far_before = f.far
    return f
  end

  -- The flow, or nil where it is gone or cannot be read.
  function self.flow(id)
    if known[id] == nil then
      local readable, f = pcall(read_flow, id)
      known[id] = readable and f or false
      if not readable then
        local why = f
        f = new_flow(id)
        f.broken = tostring(why)
      end
      if f then order[#order + 1] = f end
    end
    return known[id] or nil
  end

  local function is_live(f) return f.state == 'started' or f.state == 'failed' end

  -- -- nodes

  local function bit_of(f, n)
    if not f.bits[n] then
      local bad = f.stained > 0 and redis.call('GETBIT', f.bad_key, n) == 1
      f.bits[n] = bad and 'bad' or redis.call('GETBIT', f.ok_key, n) == 1 and 'ok' or 'open'
    end
    return f.bits[n]
  end

  -- Nearly no flow has any.
  local function is_bad(f, n) return f.stained > 0 and bit_of(f, n) == 'bad' end

  local function unreadable(f, n) error('node ' .. n .. ' of flow ' .. f.id .. ' cannot be read', 0) end

  local function unpacked(f, n, packed, width)
    local readable, row = pcall(cmsgpack.unpack, packed or '')
    if not readable or type(row) ~= 'table' or #row < width then unreadable(f, n) end
    return row
  end

  local function node_of(f, n)
    if not f.nodes[n] then
      local packed = f.rows[n]
      if not packed then
        local left
        packed, f.waiting[n], left = unpack(redis.call('HMGET', f.node_key, n, n .. 'c', n .. 'n'))
        f.counts[n] = left and (tonumber(left) or unreadable(f, n)) or nil
      end
      local row = unpacked(f, n, packed, 12)
      f.nodes[n] = {
        kind = row[1], outs = row[2], waits = row[3], policy = row[4], errbacks = row[5], sink = row[6] == 1,
        fails = row[7], id = row[8], queue = row[9], task = row[10],
        -- What it says of other nodes is counted from here.
        base = row[12],
      }
    end
    return f.nodes[n]
  end

  -- The call of a node that was looked at, and has not been released yet, or nil.
  local function waiting_call(f, n)
    if not f.waiting[n] then return end
    local row = unpacked(f, n, f.waiting[n], 15)
    return {
      queue = P .. ':' .. row[1], priority = row[2], id = row[3], task = row[4], body = row[5], meta = row[6],
      delay_ms = row[7], eta_ms = row[8], expires_ms = row[9], key = row[10], key_ttl_ms = row[11], ends = row[12],
      takes = row[13], single = row[14], base = row[15], size = #f.waiting[n],
    }
  end

  -- One less to wait for. Gives how many are left.
  local function count_down(f, n, node)
    f.counts[n] = (f.counts[n] or node.waits) - 1
    f.counted[n] = true
    return f.counts[n]
  end

  -- What it gave is needed later.
  local function keep(f, n)
    if n >= 0 and not f.kept[n] then
      expect('hash', f.value_key)
      f.kept[n] = true
    end
  end

  -- What a node gave, where it is kept and small enough to be put in front of arguments.
  local function small_value(f, n)
    local value = f.values[n]
    if not value then
      if redis.call('HSTRLEN', f.value_key, n) > INLINE_BYTES then return end
      value = redis.call('HGET', f.value_key, n)
      if not value then return end
      f.values[n] = value
    end
    if #value <= INLINE_BYTES and string.sub(value, 1, 1) ~= FAILED then return value end
  end

  -- The packed result of whichever call failed, so that this one could not run.
  local function failure_of(f, n)
    for _ = 1, 2 do
      local value = f.values[n] or redis.call('HGET', f.value_key, n) or ''
      if string.sub(value, 1, 1) ~= FAILED then break end
      f.values[n] = value
      if string.byte(value, 2) == 0x94 then return string.sub(value, 2) end
      n = cmsgpack.unpack(string.sub(value, 2))
    end
    return SKIPPED
  end

  -- -- messages

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

  local function meta_of(f, n, call, takes, base, parent)
    local place = { cmsgpack.pack(f.id), cmsgpack.pack(n) }
    if takes ~= '' then place[3] = takes end
    if takes ~= '' and base > 0 then place[4] = cmsgpack.pack(base) end
    local number, entries = 1, '\164flow' .. string.char(0x90 + #place) .. table.concat(place)
    if parent ~= '' then number, entries = number + 1, entries .. '\166parent' .. cmsgpack.pack(parent) end
    if call.expires_ms >= 0 then
      number, entries = number + 1, entries .. '\167expires' .. cmsgpack.pack(now + call.expires_ms)
    end
    return with_entries(call.meta, number, entries)
  end

  -- -- what happens to nodes

  local function follow(f, n, node, how, parent, origin)
    if #node.outs == 0 then return end
    work[#work + 1] = { flow = f, n = n, how = how, at = 0, parent = parent, origin = origin or n }
  end

  local function move(f, n, to, node)
    local was = bit_of(f, n)
    f.bits[n], f.moved[n] = to, true
    if was == 'open' then f.open = f.open - 1 end
    if node.kind == CALL then
      f[to] = f[to] + 1
      if was == 'bad' then f.bad = f.bad - 1 end
    end
    if node.sink then f.sunk = f.sunk + (to == 'bad' and 1 or was == 'bad' and -1 or 0) end
    if to == 'bad' then
      f.stained = f.stained + 1
      if f.failed < 0 and node.kind == CALL then f.failed = n end
      expect('string', f.bad_key)
    elseif was == 'bad' then
      expect('string', f.ok_key)
    end
    return was
  end

  -- A call that was to run again, after its death or that of another, has ended.
  local function end_rerun(f, n)
    if f.rerun[n] or f.rerun[n] == nil and redis.call('HEXISTS', f.node_key, n .. 'r') == 1 then
      f.rerun[n], f.open = false, f.open - 1
    end
  end

  -- What happens to the call that stands for one of another flow happens to that one, too.
  local function hand_up(f, n, ok, value, id, loud)
    if f.up ~= '' and n == f.tail then self.report(f.up, f.up_node, ok, value, id, loud) end
  end

  -- It will never run, since another one failed: once, and nobody is told but those who wait for it.
  local function doom(f, n, origin, parent)
    local node = node_of(f, n)
    if bit_of(f, n) ~= 'open' then return end
    move(f, n, 'bad', node)
    if node.policy == SKIP then
      f.values[n], origin = FAILED .. SKIPPED, n
    else
      f.values[n] = FAILED .. cmsgpack.pack(origin)
    end
    keep(f, n)
    if node.kind == CALL then
      local result = failure_of(f, origin)
      bytes_left = bytes_left - #result
      if node.sink then expect('string', P .. ':' .. node.queue .. ':result:' .. node.id) end
      f.told[#f.told + 1] = { P .. ':' .. node.queue, node.id, result, node.sink }
      hand_up(f, n, false, FAILED .. result, node.id, string.sub(result, 2, 9) == '\167FAILURE')
    end
    follow(f, n, node, 'bad', parent, origin)
  end

  local release

  local function tell_errbacks(f, n, node)
    for i = 1, #node.errbacks, 2 do
      nodes_left = nodes_left - 1
      local about = { string.format('%.0f', n), node.errbacks[i + 1], node.queue, node.task }
      release(f, node.errbacks[i] + node.base, '', about[2] == '' and '' or cmsgpack.pack(table.concat(about, ' ')))
    end
  end

  -- It has ended.
  -- value    what it gave, or FAILED and its packed result
  -- loud     its errbacks are to hear of it
  -- unheard  nobody else writes its result
  local function settle_node(f, n, ok, value, id, loud, unheard)
    local node, was = node_of(f, n), bit_of(f, n)
    if was == 'bad' then end_rerun(f, n) end
    if was == 'bad' and not ok and loud then
      -- At first it fell with another one, which was redriven: its errbacks have not heard of it yet.
      f.values[n] = value
      keep(f, n)
      tell_errbacks(f, n, node)
    end
    if was == 'ok' or was == 'bad' and not ok then return end
    move(f, n, ok and 'ok' or 'bad', node)
    f.values[n] = value
    -- A failure is what those behind it are answered with, and what errbacks read; until it is none any more.
    if was == 'bad' or not ok then keep(f, n) end
    if unheard then f.told[#f.told + 1] = { P .. ':' .. node.queue, node.id, string.sub(value, 2), true } end
    if not ok then
      if loud then tell_errbacks(f, n, node) end
      if node.fails >= 0 and is_live(f) then doom(f, node.fails + node.base, n, id) end
    end
    follow(f, n, node, not ok and 'bad' or was == 'bad' and 'late' or 'ok', id)
    hand_up(f, n, ok, value, id, loud)
  end

  -- Nothing is waited for any more.
  -- parent  id of the call that ended last, '' = none
  -- told    packed, what an errback is told
  release = function(f, n, parent, told)
    local node = node_of(f, n)
    if node.kind == JOIN then
      if bit_of(f, n) == 'ok' then return end
      local late = move(f, n, 'ok', node) == 'bad'
      return follow(f, n, node, late and 'late' or 'ok', parent)
    end
    local call = waiting_call(f, n)
    if not call then return end
    f.waiting[n], f.released[n] = false, true
    bytes_left = bytes_left - call.size
    if is_bad(f, n) then
      f.rerun[n], f.open = true, f.open + 1
      -- It was answered with the failure of another one, and runs after all.
      if node.sink then f.stale[#f.stale + 1] = call.queue .. ':result:' .. call.id end
    elseif node.kind == ERRBACK then
      f.open = f.open + 1
    end
    if some_revoked[call.queue] == nil then
      some_revoked[call.queue] = redis.call('EXISTS', call.queue .. ':revoked') == 1
    end
    if some_revoked[call.queue] and revoked_until(call.id, call.queue) then
      return settle_node(f, n, false, FAILED .. REVOKED_RESULT, call.id, false, true)
    end
    if call.key ~= '' then
      local marker = marker_of(call.key, call.queue)
      local winner = claimed[marker] or stands(call.key, call.queue)
      if winner then
        local result = cmsgpack.pack({ 'REVOKED', 1, 0, 'duplicate of ' .. winner })
        return settle_node(f, n, false, FAILED .. result, call.id, false, true)
      end
      expect('hash', call.queue .. ':calls')
      claimed[marker] = call.id
    end
    expect_delayed(call.priority, call.queue)
    local takes, body, single = told or call.takes, call.body, call.single >= 0 and call.single + call.base
    local value = single and small_value(f, single)
    if value then
      takes, body, bytes_left = '', with_value(body, value), bytes_left - #value
    elseif single then
      keep(f, single)
    end
    local due = call.eta_ms >= 0 and call.eta_ms or now + math.max(0, call.delay_ms)
    f.far = math.max(f.far, due)
    f.sends[#f.sends + 1] = { n, due, call, body, meta_of(f, n, call, takes, told and 0 or call.base, parent) }
    return takes ~= ''
  end

  -- One node that waits for the one of this item. Gives true where that one's value is needed later.
  local function visit(item, n)
    local f, node = item.flow, node_of(item.flow, n)
    if not is_live(f) then return end
    if item.how == 'bad' and node.policy ~= CONTINUE then
      if is_bad(f, item.n) then doom(f, n, item.origin, item.parent) end
    elseif item.how ~= 'late' or node.policy ~= CONTINUE then
      if item.n >= 0 and count_down(f, n, node) > 0 then return true end
      return release(f, n, item.parent) or node.kind == JOIN
    end
  end

  -- One that is to end with the flow: who waits for it hears of it.
  local function close(f, n)
    local node = node_of(f, n)
    local within = redis.call('HGET', f.node_key, n .. 's')
    if within then self.stop(within, f.state, f.result, f.terminate == 1) end
    if node.kind == ERRBACK or bit_of(f, n) ~= 'open' then return end
    if node.kind == JOIN then return move(f, n, 'bad', node) end
    local queue, loud = P .. ':' .. node.queue, f.state == 'expired'
    expect('string', queue .. ':result:' .. node.id)
    bytes_left = bytes_left - #f.result
    if f.waiting[n] or loud then
      move(f, n, 'bad', node)
      f.released[n] = true
      f.waiting[n], f.values[n] = false, FAILED .. f.result
      if loud and #node.errbacks > 0 then keep(f, n) end
      if loud then tell_errbacks(f, n, node) end
      hand_up(f, n, false, FAILED .. f.result, node.id, loud)
    elseif redis.call('ZSCORE', queue .. ':delayed', node.id) then
      -- It is due now, for whoever gets it to see to the rest.
      expect_delayed(0, queue)
      f.hastened[#f.hastened + 1] = { queue, node.id }
    else
      -- What runs ends by itself; unless nothing was heard of it for so long.
      return
    end
    f.told[#f.told + 1] = { queue, node.id, f.result, node.sink }
  end

  -- Carries on where it stopped. False where the budget is used up.
  local function step(item)
    local f, passed, last = item.flow, 0, -1
    local runs, base = item.runs, item.base
    if not runs then
      local node = node_of(f, item.n)
      runs, base = node.outs, node.base
    end
    for _, part in ipairs(runs) do
      local from, length = part, 1
      if part < 0 then from, length = last + 1, -part end
      for n = from + math.max(0, item.at - passed), from + length - 1 do
        if self.used_up() then return false end
        nodes_left = nodes_left - 1
        if item.how == 'close' then
          close(f, n)
        elseif visit(item, n + base) then
          keep(f, item.n)
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
    f.broken = tostring(answer)
    return true
  end

  -- The callbacks of a batch: each once, and not before everything else of this script.
  local function call_back(f)
    if f.death >= 0 and (f.bad > 0 or f.abandoned) then release(f, f.death, '') end
    if f.unsealed > 0 or f.ok + f.bad < f.calls then return end
    if f.complete >= 0 then release(f, f.complete, '') end
    if f.success >= 0 and f.ok == f.calls then release(f, f.success, '') end
  end

  -- What follows from all that was said, as far as the budget goes.
  function self.go_on()
    while first <= #work and not self.used_up() do
      local item = work[first]
      if item.flow.broken or guarded(item.flow, step, item) then first = first + 1 end
    end
    for i = first, #work do guarded(work[i].flow, keep, work[i].flow, work[i].n) end
    for _, f in ipairs(order) do
      if f.callbacks and is_live(f) and not f.broken then guarded(f, call_back, f) end
    end
  end

  -- Where something was left, `how` and what else tells how far it came.
  function self.resume(id, n, how, at, parent, origin, packed, base)
    local f = self.flow(id)
    if not f or not is_live(f) and how ~= 'close' then return end
    local item = { flow = f, n = n, how = how, at = at, parent = parent, origin = origin, base = base or 0 }
    if n < 0 then
      item.packed = packed or ''
      if item.packed == '' then packed = redis.call('HGET', f.head, how == 'close' and 'sinks' or 'roots') end
      local readable, runs = pcall(cmsgpack.unpack, packed or '')
      if not readable or type(runs) ~= 'table' then
        f.broken = 'its head cannot be read'
        return
      end
      item.runs = runs
      if how == 'close' then
        -- Those that people wait for come first.
        runs[#runs + 1], runs[#runs + 2] = 0, f.size > 1 and 1 - f.size or nil
        local result, terminate = unpack(redis.call('HMGET', f.head, 'result', 'terminate'))
        f.result, f.terminate = f.result or result or SKIPPED, f.terminate or tonumber(terminate) or 0
      end
    end
    work[#work + 1] = item
  end

  -- A member has ended, and its outcome is ours to write.
  function self.report(id, n, ok, value, task_id, loud, unheard)
    local f = self.flow(id)
    if not f then self.strayed = self.strayed + 1 end
    if f and n >= 0 and n < f.size and n % 1 == 0 and f.state ~= 'starting' and f.state ~= 'succeeded' then
      guarded(f, settle_node, f, n, ok, value, task_id, loud and is_live(f), unheard)
    end
  end

  -- A call that waits is not to run. False where it waits no more.
  function self.revoke(id, n)
    local f = self.flow(id)
    if not f or not is_live(f) or n < 0 or n >= f.size then return false end
    return guarded(f, function()
      local node = node_of(f, n)
      if not f.waiting[n] or bit_of(f, n) ~= 'open' then return false end
      f.waiting[n], f.released[n] = false, true
      settle_node(f, n, false, FAILED .. REVOKED_RESULT, node.id, false, true)
      return true
    end)
  end

  -- A dead letter is to run again. False where its flow does not wait for it any more.
  function self.rerun(id, n)
    local f = self.flow(id)
    if not f or not is_live(f) or n < 0 or n >= f.size or not is_bad(f, n) then return false end
    if redis.call('HEXISTS', f.node_key, n .. 'r') == 0 then f.rerun[n], f.open = true, f.open + 1 end
    return true
  end

  -- It ends before its time, with this packed result for whoever waits for it. `terminate`: what runs is interrupted.
  function self.stop(id, state, result, terminate)
    local f = self.flow(id)
    if not f or f.broken or not (is_live(f) or terminate and f.state == 'cancelled') then return false end
    local packed = redis.call('HGET', f.head, 'queues')
    f.state, f.terminate, f.marked = state, terminate and 1 or 0, {}
    f.queues = cmsgpack.unpack(packed or '\144')
    for i = 1, #f.queues, 3 do
      f.queues[i] = P .. ':' .. f.queues[i]
      expect('zset', f.queues[i] .. ':revoked')
    end
    f.result = result
    self.resume(id, -1, 'close', 0, '', -1)
    return true
  end

  -- A new flow. `rows` and `calls` are those of its nodes that are not stored yet, by number.
  function self.start(id, head, rows, calls)
    local f = new_flow(id)
    f.rows, f.waiting = rows, calls
    for _, name in ipairs(COUNTS) do f[name] = head[name] or 0 end
    take_in(f, FIXED, head.fixed)
    f.state, f.failed, f.far, f.callbacks = 'started', -1, now, f.success >= 0 or f.complete >= 0 or f.death >= 0
    known[id], order[#order + 1] = f, f
    if f.up ~= '' then
      local above = self.flow(f.up)
      if above and not above.broken then above.replaced[f.up_node] = id end
    end
    local runs = cmsgpack.unpack(head.roots)
    work[#work + 1] = { flow = f, n = -1, how = 'roots', at = 0, parent = '', origin = -1, runs = runs, base = 0 }
    return f
  end

  local function based(row, base) return string.sub(row, 1, -5) .. struct.pack('>I4', base) end

  -- More nodes, which count their edges from 0. True where they stand, also since an earlier time; false where the flow
  -- has ended, or is sealed and the one that adds is none of its members that run.
  -- key    names them: they are added once
  -- head   as in flow_add
  -- rows   pairs of what is known of a node, and its call
  function self.add(id, key, head, rows, inside, parent)
    local f = self.flow(id)
    if not f or not is_live(f) then return false end
    if f.pages[key] or redis.call('HEXISTS', f.node_key, '+' .. key) == 1 then return true end
    if f.unsealed == 0 and not inside then return false end
    local base = f.size
    f.pages[key] = base
    if base == 0 then f.touched = 0 end
    expect('string', f.ok_key, f.bad_key)
    f.size, f.open, f.calls = base + #rows / 2, f.open + head.open, f.calls + head.calls
    for i = 1, #rows, 2 do
      local n = base + (i - 1) / 2
      f.rows[n], f.bits[n] = based(rows[i], base), 'open'
      f.waiting[n] = rows[i + 1] ~= '' and based(rows[i + 1], base)
    end
    local item = { flow = f, n = -1, how = 'roots', at = 0, parent = parent, origin = -1, base = base }
    item.runs, item.packed = cmsgpack.unpack(head.roots), head.roots
    work[#work + 1] = item
    return true
  end

  -- Nothing is added any more, but by members that run. `late`: nobody has said so, and nobody will.
  function self.seal(id, late)
    local f = self.flow(id)
    if not f or not is_live(f) or f.unsealed == 0 then return false end
    f.unsealed, f.touched, f.abandoned = 0, 0, late
    return true
  end

  -- Whoever fills it is still there.
  function self.keep_open(id)
    local f = self.flow(id)
    if not f or not is_live(f) or f.unsealed == 0 then return false end
    f.renewed = true
    return true
  end

  -- -- writing

  local function write_nodes(f)
    for n, row in pairs(f.rows) do store_node(f.node_key, n, row, f.waiting[n]) end
    for n, within in pairs(f.replaced) do redis.call('HSET', f.node_key, n .. 's', within) end
    for key, base in pairs(f.pages) do redis.call('HSET', f.node_key, '+' .. key, base) end
    if next(f.pages) then
      -- They are there, and end some day.
      redis.call('SETBIT', f.ok_key, f.size - 1, 0)
      redis.call('SETBIT', f.bad_key, f.size - 1, 0)
    end
    for n in pairs(f.moved) do
      if f.bits[n] == 'ok' and f.stained > 0 then redis.call('SETBIT', f.bad_key, n, 0) end
      redis.call('SETBIT', f.bits[n] == 'ok' and f.ok_key or f.bad_key, n, 1)
    end
    for n in pairs(f.counted) do
      if f.counts[n] > 0 then
        redis.call('HSET', f.node_key, n .. 'n', f.counts[n])
      elseif f.nodes[n].waits > 1 then
        redis.call('HDEL', f.node_key, n .. 'n')
      end
    end
    for n in pairs(f.released) do redis.call('HDEL', f.node_key, n .. 'c') end
    for n, again in pairs(f.rerun) do
      if again then redis.call('HSET', f.node_key, n .. 'r', 1) else redis.call('HDEL', f.node_key, n .. 'r') end
    end
    local fresh
    for n, kept in pairs(f.kept) do
      if kept and f.values[n] then
        if fresh == nil then fresh = redis.call('EXISTS', f.value_key) == 0 end
        redis.call('HSET', f.value_key, n, f.values[n])
      end
    end
    if fresh then redis.call('PEXPIRE', f.value_key, string.format('%.0f', 2 * f.life_ms)) end
  end

  local function write_calls(f)
    for _, send in ipairs(f.sends) do
      local due, call = send[2], send[3]
      if call.key ~= '' then mark(call.key, call.id, call.key_ttl_ms, call.ends, false, {}, call.queue) end
      place(now, due, call.priority, call.id, call.task, send[4], send[5], call.queue)
    end
    for _, each in ipairs(f.hastened) do
      redis.call('ZADD', each[1] .. ':delayed', 'XX', now, each[2])
      wake(each[1])
    end
    for _, key in ipairs(f.stale) do redis.call('DEL', key) end
    for _, each in ipairs(f.told) do
      local key = each[1] .. ':result:' .. each[2]
      if each[4] then redis.call('SET', key, each[3], 'PX', string.format('%.0f', math.max(1, f.ttl_ms))) end
      redis.call(PUBLISH, key, each[3])
    end
  end

  local function keep_for(f, ms, ttl_ms)
    local ttl = string.format('%.0f', ttl_ms)
    for _, key in ipairs({ f.head, f.node_key, f.value_key, f.ok_key, f.bad_key }) do redis.call('PEXPIRE', key, ttl) end
    if f.unsealed == 0 or f.before ~= 'started' then redis.call('ZADD', FLOWS, string.format('%.0f', now + ms), f.id) end
    if redis.call('PTTL', FLOWS) < ttl_ms then redis.call('PEXPIRE', FLOWS, ttl) end
  end

  local function write_head(f)
    if is_live(f) then
      f.state = f.open + f.unsealed > 0 and 'started' or f.sunk > 0 and 'failed' or 'succeeded'
    end
    local later = f.far > math.max(f.far_before or 0, now)
    local prolongs = f.state == 'started' and (f.before ~= 'started' or later or now - f.touched >= PROLONG_MS)
    if prolongs then f.touched = now end
    local counts = {}
    for i, name in ipairs(COUNTS) do counts[i] = f[name] end
    local head = { 'state', f.state, 'counts', cmsgpack.pack(counts) }
    if f.abandoned then head[5], head[6] = 'abandoned', 1 end
    if f.state ~= 'started' and f.state ~= f.before then
      head[#head + 1], head[#head + 2] = 'ended', string.format('%.0f', now)
    end
    if f.result then head[#head + 1], head[#head + 2] = 'result', f.result end
    if f.marked then
      head[#head + 1], head[#head + 2] = 'terminate', f.terminate
      -- Those of its calls that run, or are on their way, find it under a name that no call can have.
      local until_ms = string.format('%.1f', now + FORGET_MS + f.terminate / 2)
      for i = 1, f.state == 'cancelled' and #f.queues or 0, 3 do
        redis.call('ZADD', f.queues[i] .. ':revoked', until_ms, 'flow ' .. f.id)
        redis.call('PEXPIRE', f.queues[i] .. ':revoked', FORGET_MS)
      end
    end
    redis.call('HSET', f.head, unpack(head))
    if prolongs then
      local latest = math.max(f.far, now) - now
      keep_for(f, f.unsealed > 0 and f.lease_ms or f.life_ms + latest, 2 * f.life_ms + latest)
    elseif f.state == 'succeeded' then
      redis.call('UNLINK', f.node_key, f.value_key, f.ok_key, f.bad_key)
      redis.call('PEXPIRE', f.head, string.format('%.0f', math.max(f.ttl_ms, repeat_window())))
      redis.call('ZREM', FLOWS, f.id)
    elseif f.state ~= f.before then
      local ms = f.state == 'failed' and f.kept_ms or math.max(f.ttl_ms, repeat_window())
      keep_for(f, ms, ms)
    end
    if f.renewed then redis.call('ZADD', FLOWS, 'XX', string.format('%.0f', now + f.lease_ms), f.id) end
    if f.state ~= f.before then redis.call(PUBLISH, f.head, f.state) end
  end

  -- Asked before the first write, where anything was said.
  function self.check()
    expect('zset', FLOWS)
    expect('list', TODO)
  end

  -- Gives how many items are left for others.
  function self.write()
    for _, f in ipairs(order) do
      if f.broken then
        redis.pcall('HSET', f.head, 'state', 'failed', 'error', f.broken)
      else
        write_nodes(f)
        write_calls(f)
        write_head(f)
      end
    end
    local left = 0
    for i = first, #work do
      local item = work[i]
      if not item.flow.broken then
        local rest = { item.flow.id, item.n, item.how, item.at, item.parent, item.origin, item.packed or '', item.base or 0 }
        redis.call('RPUSH', TODO, cmsgpack.pack(rest))
        left = left + 1
      end
    end
    return left
  end

  return self
end
