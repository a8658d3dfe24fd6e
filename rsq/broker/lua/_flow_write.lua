-- Part of _flow: writing all that was noted. Nothing here raises.

local CODES = { started = 1, failed = 2, succeeded = 3, cancelled = 4, expired = 5 }

-- All that has changed in the nodes is set behind the first two of `fields`; gives how many there are then.
local function list_nodes(f, fields)
  local i = 2
  for _, node in pairs(f.nodes) do
    if node.changed then
      local name = node.name
      fields[i + 1], fields[i + 2], i = name, string.char(node.state) .. string.sub(node.row, 2), i + 2
      if node.left then fields[i + 1], fields[i + 2], i = name .. 'n', node.left, i + 2 end
      if node.kept and node.value then fields[i + 1], fields[i + 2], i = name .. 'v', node.value, i + 2 end
      if node.error then fields[i + 1], fields[i + 2], i = name .. 'e', node.error, i + 2 end
      if node.lists then
        fields[i + 1], fields[i + 2], i = name .. 'm', node.listed, i + 2
        for page, numbers in pairs(node.lists) do fields[i + 1], fields[i + 2], i = page, numbers, i + 2 end
      end
    end
  end
  if not f.rows then return i end
  for n, row in pairs(f.rows) do
    if not f.nodes[n] or not f.nodes[n].changed then fields[i + 1], fields[i + 2], i = name_of(n), row, i + 2 end
  end
  return i
end

-- A flow that is over is known by these fields alone.
local function write_over(f, head)
  local NAMES_OVER, fields = { 'created', 'ended', 'description', 'abandoned' }, {}
  for i, value in ipairs(redis.call('HMGET', f.key, unpack(NAMES_OVER))) do
    if value then fields[#fields + 1], fields[#fields + 2] = NAMES_OVER[i], value end
  end
  redis.call('UNLINK', f.key)
  redis.call('HSET', f.key, 'head', head, unpack(fields))
  redis.call('PEXPIRE', f.key, string.format('%.0f', math.max(f.ttl_ms, repeat_window())))
  redis.call('ZREM', FLOWS, f.id)
end

local function keep_for(f, ms, ttl_ms)
  local ttl = string.format('%.0f', ttl_ms)
  redis.call('PEXPIRE', f.key, ttl)
  if f.unsealed == 0 or f.before ~= 'started' then redis.call('ZADD', FLOWS, string.format('%.0f', now + ms), f.id) end
  if redis.call('PTTL', FLOWS) < ttl_ms then redis.call('PEXPIRE', FLOWS, ttl) end
end

-- What waited in it is answered from there. Those of its calls that run, or are on their way, find it under a name that no
-- call can have.
local function mark_ended(f)
  redis.call('HSET', f.key, 'result', f.result, 'terminate', f.terminate)
  local until_ms = string.format('%.1f', now + FORGET_MS + f.terminate / 2)
  for i = 1, f.state == 'cancelled' and #f.queues or 0, 3 do
    redis.call('ZADD', f.queues[i] .. ':revoked', until_ms, 'flow ' .. f.id)
    redis.call('PEXPIRE', f.queues[i] .. ':revoked', FORGET_MS)
  end
end

local function write_flow(f)
  if is_live(f) then
    f.state = f.open + f.unsealed > 0 and 'started' or f.sunk > 0 and 'failed' or 'succeeded'
  end
  local later = f.far > math.max(f.far_before or 0, now)
  local prolongs = f.state == 'started' and (f.before ~= 'started' or later or now - f.touched >= PROLONG_MS)
  if prolongs then f.touched = now end
  local head = struct.pack(COUNTS, CODES[f.state], (f.calls_back and 1 or 0) + (f.above and 2 or 0) +
    (f.lists and 4 or 0), f.size, f.calls, f.open, f.ok, f.bad, f.sunk, f.failed, f.unsealed, f.touched, f.far) .. f.fixed
  local changes = f.state ~= f.before
  if f.fields then set_fields(f.key, f.fields, #f.fields) end
  if f.state ~= 'succeeded' then
    local fields = { 'head', head, false, false, false, false }
    set_fields(f.key, fields, list_nodes(f, fields))
  end
  if not changes and not prolongs and not f.renewed then return end
  know_fixed(f)
  if f.state ~= 'started' and changes then redis.call('HSET', f.key, 'ended', string.format('%.0f', now)) end
  -- A dead letter was sent again, and carries it on.
  if f.state == 'started' and f.before == 'failed' then redis.call('HDEL', f.key, 'ended') end
  if prolongs then
    local latest = math.max(f.far, now) - now
    keep_for(f, f.unsealed > 0 and f.lease_ms or f.life_ms + latest, 2 * f.life_ms + latest)
  elseif f.state == 'succeeded' then
    write_over(f, head)
  elseif changes then
    local ms = f.state == 'failed' and f.kept_ms or math.max(f.ttl_ms, repeat_window())
    keep_for(f, ms, ms)
  end
  if f.renewed then redis.call('ZADD', FLOWS, 'XX', string.format('%.0f', now + f.lease_ms), f.id) end
  if changes then redis.call(PUBLISH, f.key, f.state) end
end

local function write_calls()
  for _, send in ipairs(sends) do
    local f, due, priority, id, task, body, meta, queue, key = unpack(send, 1, 9)
    if not f.broken then
      if key ~= '' then mark(key, id, send[10], send[11], false, {}, queue) end
      place(now, due, priority, id, task, body, meta, queue)
    end
  end
  for _, each in ipairs(hastened) do
    if not each[1].broken then
      redis.call('ZADD', each[2] .. ':delayed', 'XX', now, each[3])
      wake(each[2])
    end
  end
  for _, each in ipairs(stale) do
    if not each[1].broken then redis.call('UNLINK', each[2]) end
  end
  for _, each in ipairs(told) do
    local f, key = each[1], each[2] .. ':result:' .. each[3]
    if not f.broken then
      if each[5] then redis.call('SET', key, each[4], 'PX', string.format('%.0f', math.max(1, f.ttl_ms))) end
      redis.call(PUBLISH, key, each[4])
    end
  end
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
      redis.pcall('HSET', f.key, 'error', f.broken)
    elseif f.state ~= 'starting' then
      write_flow(f)
      if f.marked then mark_ended(f) end
    end
  end
  write_calls()
  for _, item in ipairs(later) do work[#work + 1] = item end
  local left = 0
  for i = first, #work do
    local item = work[i]
    if not item.flow.broken then
      local n = item.node and item.node.n or -1
      local rest = {
        item.flow.id, n, item.how, item.at, item.parent, item.origin, item.packed or '', item.base or 0,
      }
      redis.call('RPUSH', TODO, cmsgpack.pack(rest))
      left = left + 1
    end
  end
  return left
end
