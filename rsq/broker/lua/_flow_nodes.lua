-- Part of _flow: what happens to a node.

-- What is left to be done: edges of nodes, from `first` on. What is to be sent, told, made due, deleted, and done by others.
local work, first = {}, 1
local sends, told, hastened, stale, later = {}, {}, {}, {}, {}
local claimed, some_revoked, ready_for = {}, {}, {}
local visit

-- how  what becomes of those behind it: 'ok', 'late' (after it was bad), 'bad', or 'blamed' (they are bad already, but for
--      another one that is not to blame any more). Of an item it may be 'roots', 'close' and 'tell' as well.
local function follow(f, node, how, parent, origin)
  if node.outs == 0 and not node.more then return end
  -- One alone is seen to at once.
  if how == 'ok' and node.outs == 1 and not node.more and not self.used_up() then
    nodes_left = nodes_left - 1
    if visit(f, node, how, parent, node.n, node_of(f, node.out + node.base)) then keep(node) end
    return
  end
  work[#work + 1] = { flow = f, node = node, how = how, at = 0, parent = parent, origin = origin or node.n }
end

local function move(f, node, to)
  local was = node.state
  node.state, node.changed = to, true
  if was == OPEN then f.open = f.open - 1 end
  if node.kind == CALL then
    if to == OK then f.ok = f.ok + 1 end
    if was == BAD then f.bad = f.bad - 1 elseif to == BAD then f.bad = f.bad + 1 end
    if to == BAD and f.failed < 0 then f.failed, f.mourns = node.n, true end
  end
  if node.sink then f.sunk = f.sunk + (to == BAD and 1 or was == BAD and -1 or 0) end
  return was
end

-- Its caller hears of it, here and nowhere else. `kept`: it finds the result later, too.
local function tell(f, queue, id, result, kept)
  if kept then
    know_fixed(f)
    expect('string', queue .. ':result:' .. id)
  end
  told[#told + 1] = { f, queue, id, result, kept }
end

-- It stands for a call of another flow.
local function stands_above(f, node)
  if f.above then know_fixed(f) end
  return f.above and node.n == f.tail
end

-- What happens to the call that stands for one of another flow happens to that one, too.
local function hand_up(f, node, ok, value, id, loud)
  if stands_above(f, node) then self.report(f.up, f.up_node, ok, value, id, loud) end
end

-- It is bad for one that is not bad any more.
local function blames_nobody(f, node)
  local origin = node.state == BAD and origin_of(value_of(f, node))
  return origin and origin ~= node.n and node_of(f, origin).state ~= BAD
end

-- It will never run, since another one failed: once, and nobody is told but those who wait for it.
local function doom(f, node, origin, parent)
  local how = node.state == OPEN and 'bad' or blames_nobody(f, node) and 'blamed'
  if not how then return end
  if how == 'bad' then move(f, node, BAD) end
  if node.policy == SKIP then
    node.value, origin = FAILED .. SKIPPED, node.n
  else
    node.value = FAILED .. cmsgpack.pack(origin)
  end
  keep(node)
  if node.kind == CALL then
    local result, queue, id = failure_of(f, origin), names_of(node)
    bytes_left = bytes_left - #result
    tell(f, queue, id, result, node.sink)
    hand_up(f, node, false, FAILED .. result, id, string.sub(result, 2, 9) == '\167FAILURE')
  end
  follow(f, node, how, parent, origin)
end

-- Its errbacks are to hear of it.
local function call_errbacks(f, node)
  if node.more then work[#work + 1] = { flow = f, node = node, how = 'tell', at = 0, parent = '', origin = node.n } end
end

-- It has ended.
-- value    what it gave, or FAILED and its packed result
-- loud     its errbacks are to hear of it
-- unheard  nobody else writes its result
local function settle_node(f, node, ok, value, id, loud, unheard)
  if node.state == AGAIN then node.state, node.changed, f.open = BAD, true, f.open - 1 end
  local was = node.state
  -- One that is bad already fell with another one, which was redriven: its errbacks have not heard of it yet.
  if was == OK or was == BAD and not ok and not loud then return end
  if ok or was == OPEN then move(f, node, ok and OK or BAD) end
  -- Errbacks that have not begun yet are to be told of the error, though it is none any more.
  if ok and was == BAD and node.more and not origin_of(value_of(f, node)) then node.error = value_of(f, node) end
  node.value = value
  -- A failure is what those behind it are answered with, and what errbacks read; until it is none any more.
  if was == BAD or not ok then keep(node) end
  if unheard then
    local queue = names_of(node)
    tell(f, queue, id, string.sub(value, 2), true)
  end
  if not ok then
    if loud then call_errbacks(f, node) end
    if node.fails >= 0 and is_live(f) then doom(f, node_of(f, node.fails + node.base), node.n, id) end
  end
  follow(f, node, ok and (was == BAD and 'late' or 'ok') or was == BAD and 'blamed' or 'bad', id)
  hand_up(f, node, ok, value, id, loud)
end

-- Who has the dedupe key of a call that is released, where that is another one; else it has it.
local function claim(key, id, queue)
  local marker = marker_of(key, queue)
  local winner = claimed[marker] or stands(key, queue)
  if winner then return winner end
  expect('hash', queue .. ':calls')
  claimed[marker] = id
end

-- When a call is to run, until when (-1 = no bound), its dedupe key, that one's TTL and what ends it.
local function placement_of(f, packed)
  if packed == '' then return now, -1, '' end
  local row = cmsgpack.unpack(packed)
  local due = row[2] >= 0 and row[2] or now + math.max(0, row[1])
  f.far = math.max(f.far, due)
  return due, row[3], row[4], row[5], row[6]
end

-- Nothing is waited for any more.
-- parent  id of the call that ended last, '' = none
-- about   packed, what an errback is told
-- from    the node that ended last
-- Gives true where it takes by reference what it was released for.
local function release(f, node, parent, about, from)
  if node.kind == JOIN then
    if node.state == OK then return end
    local late = move(f, node, OK) == BAD
    return follow(f, node, late and 'late' or 'ok', parent)
  end
  local queue, id, task, _, at = names_of(node)
  if at > #node.row then return end
  local priority, single, takes, meta, body, rest = struct.unpack(CALL_OF, node.row, at)
  bytes_left = bytes_left - (#node.row - at)
  local due, expires_ms, key, key_ttl_ms, ends = placement_of(f, string.sub(node.row, rest))
  node.row, node.changed = string.sub(node.row, 1, at - 1), true
  if node.state == BAD then
    node.state, f.open = AGAIN, f.open + 1
    -- It was answered with the failure of another one, and runs after all.
    if node.sink then stale[#stale + 1] = { f, queue .. ':result:' .. id } end
  elseif node.kind == ERRBACK then
    f.open = f.open + 1
  end
  if some_revoked[queue] == nil then some_revoked[queue] = redis.call('EXISTS', queue .. ':revoked') == 1 end
  if some_revoked[queue] and revoked_until(id, queue) then
    return settle_node(f, node, false, FAILED .. REVOKED_RESULT, id, false, true)
  end
  local winner = key ~= '' and claim(key, id, queue)
  if winner then
    local result = cmsgpack.pack({ 'REVOKED', 1, 0, 'duplicate of ' .. winner })
    return settle_node(f, node, false, FAILED .. result, id, false, true)
  end
  if ready_for[queue] ~= priority then
    expect_delayed(priority, queue)
    ready_for[queue] = priority
  end
  local base = node.base
  if about then takes, base = about, 0 end
  if single >= 0 then
    local source = node_of(f, single + node.base)
    local value = small_value(f, source)
    if value then
      takes, body, bytes_left = '', with_value(body, value), bytes_left - #value
    else
      keep(source)
    end
  end
  meta = meta_of(f.id, node.n, meta, takes, base, not about and added_to(f, node, takes, from), parent, expires_ms)
  sends[#sends + 1] = { f, due, priority, id, task, body, meta, queue, key, key_ttl_ms, ends }
  return takes ~= ''
end

-- It is to end with its flow: who waits for it hears of it.
local function close(f, node)
  local within = redis.call('HGET', f.key, node.name .. 's')
  if within then self.stop(within, f.state, f.result, f.terminate == 1) end
  if node.state ~= OPEN or node.kind == ERRBACK and not stands_above(f, node) then return end
  if node.kind == JOIN then return move(f, node, BAD) end
  local queue, id, _, _, at = names_of(node)
  local loud = f.state == 'expired'
  expect('string', queue .. ':result:' .. id)
  bytes_left = bytes_left - #f.result
  if at <= #node.row or loud then
    if node.kind == ERRBACK and at <= #node.row then f.open = f.open + 1 end
    move(f, node, BAD)
    node.row, node.value = string.sub(node.row, 1, at - 1), FAILED .. f.result
    if loud and node.more then
      keep(node)
      call_errbacks(f, node)
    end
    hand_up(f, node, false, FAILED .. f.result, id, loud)
  elseif not node.told and tonumber(redis.call('ZSCORE', queue .. ':delayed', id) or now) > now then
    -- It is due now, for whoever gets it to see to the rest. Those that people wait for come here twice.
    expect_delayed(0, queue)
    node.told = true
    hastened[#hastened + 1] = { f, queue, id }
    -- Whoever gets it finds the result there, and tells nobody again.
    return tell(f, queue, id, f.result, true)
  else
    -- What runs ends by itself; unless nothing was heard of it for so long.
    return
  end
  tell(f, queue, id, f.result, node.sink)
end
