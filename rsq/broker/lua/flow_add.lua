-- flow_add: a page of nodes is added to a batch, once
-- KEYS  T
-- ARGV  flow id, key (names the page), head (packed map: calls, open and roots as in `flow`, of these nodes alone; queues:
--       packed, their names; most: nodes that the flow may have; of a member of a chord that adds to it also beside: packed,
--       what waits for that one, and so for which of these nodes), then the row of each node; they number themselves from 0
-- out   'added', also to a repeated call | 'closed' (it is sealed, has ended, or is gone) | 'full' | 'moved', queue (it lies
--       in another partition); with the last three nothing was written
-- work  the nodes given, 1,000 at most; what that releases, see _flow
-- include: _common
-- include: _ready
-- include: _calls
-- include: _flow
local told, rows, head = flows(now_ms()), {}, cmsgpack.unpack(ARGV[3])
local P = string.match(T, '^{[^}]*}')
told.check()
for _, name in ipairs(cmsgpack.unpack(head.queues)) do
  if pause_of(P .. ':' .. name) == 'moved' then return { 'moved', name } end
end
for i = 4, #ARGV do rows[#rows + 1] = ARGV[i] end
local answer = told.add(ARGV[1], ARGV[2], head, rows, false, '')
if answer ~= 'added' then return { answer } end
told.go_on()
if told.write() > 0 then wake() end
return { 'added' }
