-- redrive: dead -> ready, one dead letter as a fresh call under its old id; of an event with an order, behind the others of that
-- KEYS  T
-- ARGV  dead letter's entry id, meta of the fresh call
-- out   'sent', id | 'gone', '' (the dead letter is not there any more) | 'duplicate', id that stands under its dedupe key,
--       or its own id where a call with that is delayed | 'ended', id of the flow, which does not wait for it any more:
--       with these two nothing was written
-- include: _common
-- include: _ready
-- include: _calls
-- include: _line
-- include: _member
-- include: _flow
local dead = T .. ':dead'
local entry = redis.call('XRANGE', dead, ARGV[1], ARGV[1])[1]
if not entry then return { 'gone', '' } end
local letter = {}
for i = 1, #entry[2], 2 do letter[entry[2][i]] = entry[2][i + 1] end
local id, priority = letter.id or '', tostring(tonumber(letter.priority) or 0)
if redis.call('HEXISTS', T .. ':messages', id) == 1 then return { 'duplicate', id } end
local readable, rule = pcall(cmsgpack.unpack, letter.dedupe or '\192')
local has_key = readable and type(rule) == 'table' and all_texts(rule, 3)
if has_key then
  local winner = stands(rule[1])
  if winner and winner ~= id then return { 'duplicate', winner } end
  expect('hash', CALLS)
end
local flow, number = flow_in(ARGV[2])
local told = flow and flows(now_ms())
if told then
  told.check()
  if not told.rerun(flow, number) then return { 'ended', flow } end
end
local order, record = letter.order, { order = letter.order }
if order then expect_line(order) end
expect('zset', REVOKED)
expect_ready(priority)

redis.call('XDEL', dead, ARGV[1])
redis.call('DEL', T .. ':result:' .. id, output_of(id))
-- Whoever revoked it came after its end: it was not to run then, and is to run now.
redis.call('ZREM', REVOKED, id)
if has_key then mark(rule[1], id, rule[3], rule[2], rule[4] == 1, record) end
if order then save(id, record) end
if order and stands_in_line(order, id) then
  local now = now_ms()
  add_delayed(now, now + NEVER_MS, priority, id, letter.task or '', letter.body or '', ARGV[2])
elseif add_ready(priority, id, letter.task or '', letter.body or '', ARGV[2]) then
  wake()
end
if told then told.write() end
return { 'sent', id }
