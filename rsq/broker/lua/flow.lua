-- flow: -> a flow; its nodes are stored page by page, and with the last page all of it starts, or nothing
-- KEYS  T
-- ARGV  flow id, head ('' = more pages follow; else a packed map of what is known of it as a whole), then rows. The head
--       holds size (nodes), calls, open (nodes but for errbacks), roots and sinks (packed runs), queues (packed:
--       name, most messages, how many calls go there at once, for each), description, unsealed (1 = a batch that grows),
--       and fixed (what never changes, see docs/protocol.md)
-- out   'stored' | 'accepted', as also to a repeated call | 'full', queue, messages held | 'paused', queue (it refuses
--       calls) | 'moved', queue (it lies in another partition) | 'missing' (earlier pages are gone: send all of them
--       again); with the last four nothing is left of it
-- work  the rows given; what a start releases, see _flow
-- rows: Stored
-- include: _common
-- include: _ready
-- include: _admit
-- include: _calls
-- include: _flow
-- include: _page
local id, now = ARGV[1], now_ms()
-- Pages that no last one follows are forgotten after this long.
local STARTING_MS = 60000
local page = page_from(id, 3)
if page.stands() then return { 'accepted' } end

if ARGV[2] == '' then
  page.store()
  redis.call('PEXPIRE', page.key, STARTING_MS)
  return { 'stored' }
end

local P, head = string.match(T, '^{[^}]*}'), cmsgpack.unpack(ARGV[2])
local answer = page.lacks(head) and { 'missing' }
local queues = cmsgpack.unpack(head.queues)
for i = 1, #queues, 3 do
  local queue = P .. ':' .. queues[i]
  local held, pause = full(queues[i + 1], queues[i + 2], queue), pause_of(queue)
  if not answer and pause == 'moved' then answer = { 'moved', queues[i] } end
  if not answer and pause == 'refuse' then answer = { 'paused', queues[i] } end
  if not answer and held then answer = { 'full', queues[i], held } end
end
if answer then
  redis.call('UNLINK', page.key)
  return answer
end

local told = flows(now)
told.check()
page.start(told, head)
told.go_on()

told.write()
return { 'accepted' }
