-- A page of the nodes of a flow that is started, as a script is given it: rows from `first` on. Needs _flow; rows are at
-- hand.
local function page_from(id, first)
  local P = string.match(T, '^{[^}]*}')
  local self = { key = P .. '::flow:' .. id, node_key = P .. '::flow-calls:' .. id }
  local nodes, waiting, numbers, f = {}, {}, {}, nil
  self.state = redis.call('HGET', self.key, 'state')
  expect('hash', self.node_key)
  for i = first, #ARGV, WIDTH do
    local n = tonumber(ARGV[i + NUMBER])
    numbers[#numbers + 1], nodes[n] = n, ARGV[i + EDGES]
    if ARGV[i + WAITING] ~= '' then waiting[n] = ARGV[i + WAITING] end
  end

  function self.store()
    for _, n in ipairs(numbers) do store_node(self.node_key, n, nodes[n], waiting[n]) end
  end

  -- Whether pages that came before this one, the last, are gone.
  function self.lacks(head)
    local fields = redis.call('HLEN', self.node_key)
    for _, n in ipairs(numbers) do
      if redis.call('HEXISTS', self.node_key, n) == 0 then fields = fields + (waiting[n] and 2 or 1) end
    end
    return fields < head.fields
  end

  -- Before the first write.
  function self.start(told, head)
    expect('string', P .. '::flow-ok:' .. id, P .. '::flow-bad:' .. id)
    expect('hash', P .. '::flow-values:' .. id)
    f = told.start(id, head, nodes, waiting)
  end

  function self.write(head, now)
    local KEPT = { roots = 1, sinks = 1, queues = 1, description = 1, fixed = 1 }
    redis.call('HSET', self.key, 'created', string.format('%.0f', now))
    for name, value in pairs(head) do
      if KEPT[name] then redis.call('HSET', self.key, name, value) end
    end
    if head.size > 0 then
      redis.call('SETBIT', f.ok_key, head.size - 1, 0)
      redis.call('SETBIT', f.bad_key, head.size - 1, 0)
    end
  end

  return self
end
