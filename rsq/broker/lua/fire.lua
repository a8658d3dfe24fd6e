-- fire: -> ready or delayed, one slot of a schedule; it is fired once, whoever asks and however often
-- KEYS  T
-- ARGV  schedule, generation (of its definition), since_ms (earlier slots are not fired), slot_ms,
--       id, task, body, meta, priority, delay_ms, max_length (0 = no bound), dedupe_key ('' = none), marker_ttl_ms,
--       ends, replace (1 = it may be given newer arguments by a duplicate), both as in enqueue
-- out   'fired', id | 'done', last slot fired | 'stale', generation of a newer definition | 'early', ms to wait
--       | 'duplicate', id that won | 'full', messages held | 'paused', id (the queue refuses calls); with these three the
--       slot is passed over: it counts as fired | 'moved', id (the queue lies in another partition: nothing is done here)
-- include: _common
-- include: _ready
-- include: _admit
-- include: _calls
local fired = T .. ':fired:' .. ARGV[1]
local generation, last, slot = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local id, task, body, meta, priority = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local delay_ms, max_length, dedupe_key, marker_ttl_ms = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12], ARGV[13]
local ends, replace = ARGV[14], ARGV[15] == '1'
local now = now_ms()

local pause = pause_of()
if pause == 'moved' then return { 'moved', id } end
local marker = redis.call('GET', fired)
if marker then
  local newest, fired_ms = string.match(marker, '^(%d+) (%d+)$')
  if tonumber(newest) > generation then return { 'stale', newest } end
  last = math.max(last, tonumber(fired_ms))
end
if slot <= last then return { 'done', last } end
if slot > now then return { 'early', slot - now } end

local winner, held = dedupe_key ~= '' and stands(dedupe_key), full(max_length)
expect('hash', CALLS)
expect_delayed(priority)

redis.call('SET', fired, ARGV[2] .. ' ' .. ARGV[4])
if winner then return { 'duplicate', winner } end
if pause == 'refuse' then return { 'paused', id } end
if held then return { 'full', held } end
if dedupe_key ~= '' then mark(dedupe_key, id, marker_ttl_ms, ends, replace, {}) end
place(now, slot + delay_ms, priority, id, task, body, meta)
return { 'fired', id }
