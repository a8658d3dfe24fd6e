-- retire: running -> ready, for all that a consumer held that left or died; called by its supervisor
-- KEYS  T
-- ARGV  consumer, how it ended, ttl_ms of the results, then a row for each call that was running; limit_s is the time limit
--       for which it was killed ('' = it died with the process), result what its caller gets if it was taken early
-- out   number of calls marked, as suspects of the crash or as overdue, or lost
-- Only what ran is marked; what was merely fetched is handed on as if nothing had happened.
-- rows: CutShort
-- include: _common
-- include: _orphans
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _settle
-- include: _ending
local consumer, how, ttl_ms = ARGV[1], ARGV[2], ARGV[3]

local function pends(stream, entry_id)
  local pending = redis.pcall('XPENDING', stream, GROUP, entry_id, entry_id, 1, consumer)
  return not pending.err and #pending == 1
end

local function mark(stream, entry_id, id, limit_s)
  -- An entry that was deleted by hand will never run again.
  if #redis.call('XRANGE', stream, entry_id, entry_id) == 0 then return false end
  if limit_s ~= '' then
    -- Whoever claims it settles this attempt by the task's own rules, without another run.
    redis.call('HSET', OVERDUE, id, limit_s)
  else
    local seen = redis.call('HGET', CRASHES, id)
    local crashes = 1 + (seen and tonumber(string.match(seen, '^%d+')) or 0)
    redis.call('HSET', CRASHES, id, crashes .. ' ' .. how)
  end
  -- Handed on by itself, so that a repeated call does not find it and mark it again.
  redis.call('XCLAIM', stream, GROUP, RELEASED, 0, entry_id, 'JUSTID')
  redis.call('SADD', T .. ':orphans', RELEASED)
  return true
end

local ids = {}
for i = 4, #ARGV, WIDTH do
  if ARGV[i + TAKEN] == '1' then ids[#ids + 1] = ARGV[i + ID] end
end
look_up(ids, 'lost')
expect('hash', CRASHES, OVERDUE)
expect('set', taken_by(consumer), T .. ':orphans')
expect('zset', MISSING)

local marked, lost, now = { crashed = 0, overdue = 0 }, {}, now_ms()
redis.call('ZREM', T .. ':consumers', consumer)
for i = 4, #ARGV, WIDTH do
  local stream, entry_id, id, limit_s = stream_of(ARGV[i + PRIORITY]), ARGV[i + ENTRY_ID], ARGV[i + ID], ARGV[i + LIMIT_S]
  if ARGV[i + TAKEN] == '1' then
    if settle(consumer, stream, entry_id, id, true) then
      -- At most once: it began and nobody will run it again, so its caller must hear of it.
      publish_result(id, ARGV[i + RESULT], ttl_ms)
      lost[#lost + 1] = id
    end
  elseif pends(stream, entry_id) then
    local how_marked = limit_s == '' and 'crashed' or 'overdue'
    if mark(stream, entry_id, id, limit_s) then marked[how_marked] = marked[how_marked] + 1 end
  end
end
finish(lost, 'lost', now)
-- What its supervisor did not know of is lost as well: the process is gone.
local unseen = end_taken(consumer, now)
redis.call('ZREM', MISSING, consumer)
count('crashed', marked.crashed)
count('overdue', marked.overdue)

if not strike_if_empty(consumer) then redis.call('SADD', T .. ':orphans', consumer) end
-- The last one to leave also strikes those whose entries were claimed since.
local waits = false
for i, orphan in ipairs(redis.call('SMEMBERS', T .. ':orphans')) do
  if i > 16 then break end
  if not strike_if_empty(orphan) then waits = true end
end
if waits then wake() end
if redis.call('ZCARD', T .. ':consumers') == 0 then drop_wake() end
return marked.crashed + marked.overdue + #lost + unseen
