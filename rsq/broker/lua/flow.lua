-- flow: -> a flow; its nodes are stored page by page, and with the last page all of it starts, or nothing
-- KEYS  T
-- ARGV  flow id, last (1 = with these rows it is complete), then, of the last page alone: number of nodes, of calls, of
--       nodes that are open (all but errbacks), of fields that its nodes fill, runs of the nodes that wait for nothing, of
--       the sinks (packed), ttl_ms of its summary, kept_ms after it failed, life_ms without progress, description,
--       queues (packed: name, most messages, how many calls go there at once, for each); else as many empty ones; then rows
-- out   'stored' | 'accepted', as also to a repeated call | 'full', queue, messages held | 'paused', queue (it refuses
--       calls) | 'missing' (earlier pages are gone: send all of them again); with the last three nothing is left of it
-- work  the rows given; what a start releases, see _flow
-- rows: Stored
-- include: _common
-- include: _ready
-- include: _admit
-- include: _calls
-- include: _flow
local id, last, now = ARGV[1], ARGV[2] == '1', now_ms()
-- Pages that no last one follows are forgotten after this long.
local STARTING_MS, FIRST = 60000, 14
local P = string.match(T, '^{[^}]*}')
local head, calls = P .. '::flow:' .. id, P .. '::flow-calls:' .. id
local state = redis.call('HGET', head, 'state')
if state and state ~= 'starting' then return { 'accepted' } end
expect('hash', calls)

local nodes, waiting, numbers = {}, {}, {}
for i = FIRST, #ARGV, WIDTH do
  local n = tonumber(ARGV[i + NUMBER])
  numbers[#numbers + 1], nodes[n] = n, ARGV[i + EDGES]
  if ARGV[i + WAITING] ~= '' then waiting[n] = ARGV[i + WAITING] end
end

local function store()
  for _, n in ipairs(numbers) do
    redis.call('HSET', calls, n, nodes[n])
    if waiting[n] then redis.call('HSET', calls, n .. 'c', waiting[n]) end
  end
end

if not last then
  redis.call('HSET', head, 'state', 'starting')
  store()
  redis.call('PEXPIRE', head, STARTING_MS)
  redis.call('PEXPIRE', calls, STARTING_MS)
  return { 'stored' }
end

local fields = redis.call('HLEN', calls)
for _, n in ipairs(numbers) do
  if redis.call('HEXISTS', calls, n) == 0 then fields = fields + (waiting[n] and 2 or 1) end
end
local answer = fields < tonumber(ARGV[6]) and { 'missing' }
local queues = cmsgpack.unpack(ARGV[13])
for i = 1, #queues, 3 do
  local queue = P .. ':' .. queues[i]
  local held = full(queues[i + 1], queues[i + 2], queue)
  if not answer and refuses(queue) then answer = { 'paused', queues[i] } end
  if not answer and held then answer = { 'full', queues[i], held } end
end
if answer then
  redis.call('UNLINK', head, calls)
  return answer
end

local told, size = flows(now), tonumber(ARGV[3])
told.check()
expect('string', P .. '::flow-ok:' .. id, P .. '::flow-bad:' .. id)
expect('hash', P .. '::flow-values:' .. id)
local f = told.start(id, {
  size = size, open = tonumber(ARGV[5]), ttl_ms = tonumber(ARGV[9]), kept_ms = tonumber(ARGV[10]), life_ms = tonumber(ARGV[11]),
}, cmsgpack.unpack(ARGV[7]), nodes, waiting)
told.go_on()

redis.call('HSET', head, 'size', size, 'calls', ARGV[4], 'created', string.format('%.0f', now), 'roots', ARGV[7], 'sinks', ARGV[8],
  'ttl_ms', ARGV[9], 'kept_ms', ARGV[10], 'life_ms', ARGV[11], 'description', ARGV[12], 'queues', ARGV[13])
store()
if size > 0 then
  redis.call('SETBIT', f.ok_key, size - 1, 0)
  redis.call('SETBIT', f.bad_key, size - 1, 0)
end
told.write()
return { 'accepted' }
