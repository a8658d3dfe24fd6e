-- flow: -> a flow; its nodes are stored page by page, and with the last page all of it starts, or nothing
-- KEYS  T
-- ARGV  flow id, head ('' = more pages follow; else a packed map of what is known of it as a whole), then rows. The head
--       holds size (nodes), calls, open (nodes but for errbacks), fields (that its nodes fill), roots and sinks (packed
--       runs), queues (packed: name, most messages, how many calls go there at once, for each), description, ttl_ms of
--       its summary, kept_ms after it failed, life_ms without progress, unsealed (1 = a batch that grows) with lease_ms,
--       and success, complete, death (the nodes that are its callbacks; -1 = none)
-- out   'stored' | 'accepted', as also to a repeated call | 'full', queue, messages held | 'paused', queue (it refuses
--       calls) | 'missing' (earlier pages are gone: send all of them again); with the last three nothing is left of it
-- work  the rows given; what a start releases, see _flow
-- rows: Stored
-- include: _common
-- include: _ready
-- include: _admit
-- include: _calls
-- include: _flow
local id, now = ARGV[1], now_ms()
-- Pages that no last one follows are forgotten after this long.
local STARTING_MS, FIRST = 60000, 3
local P = string.match(T, '^{[^}]*}')
local key, node_key = P .. '::flow:' .. id, P .. '::flow-calls:' .. id
local state = redis.call('HGET', key, 'state')
if state and state ~= 'starting' then return { 'accepted' } end
expect('hash', node_key)

local nodes, waiting, numbers = {}, {}, {}
for i = FIRST, #ARGV, WIDTH do
  local n = tonumber(ARGV[i + NUMBER])
  numbers[#numbers + 1], nodes[n] = n, ARGV[i + EDGES]
  if ARGV[i + WAITING] ~= '' then waiting[n] = ARGV[i + WAITING] end
end

if ARGV[2] == '' then
  redis.call('HSET', key, 'state', 'starting')
  for _, n in ipairs(numbers) do
    redis.call('HSET', node_key, n, nodes[n])
    if waiting[n] then redis.call('HSET', node_key, n .. 'c', waiting[n]) end
  end
  redis.call('PEXPIRE', key, STARTING_MS)
  redis.call('PEXPIRE', node_key, STARTING_MS)
  return { 'stored' }
end

local head, fields = cmsgpack.unpack(ARGV[2]), redis.call('HLEN', node_key)
for _, n in ipairs(numbers) do
  if redis.call('HEXISTS', node_key, n) == 0 then fields = fields + (waiting[n] and 2 or 1) end
end
local answer = fields < head.fields and { 'missing' }
local queues = cmsgpack.unpack(head.queues)
for i = 1, #queues, 3 do
  local queue = P .. ':' .. queues[i]
  local held = full(queues[i + 1], queues[i + 2], queue)
  if not answer and refuses(queue) then answer = { 'paused', queues[i] } end
  if not answer and held then answer = { 'full', queues[i], held } end
end
if answer then
  redis.call('UNLINK', key, node_key)
  return answer
end

local told = flows(now)
told.check()
expect('string', P .. '::flow-ok:' .. id, P .. '::flow-bad:' .. id)
expect('hash', P .. '::flow-values:' .. id)
local f = told.start(id, head, nodes, waiting)
told.go_on()

redis.call('HSET', key, 'created', string.format('%.0f', now))
for name, value in pairs(head) do
  if name ~= 'fields' then redis.call('HSET', key, name, value) end
end
if head.size > 0 then
  redis.call('SETBIT', f.ok_key, head.size - 1, 0)
  redis.call('SETBIT', f.bad_key, head.size - 1, 0)
end
told.write()
return { 'accepted' }
