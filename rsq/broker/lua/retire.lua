-- retire: running -> ready, for all that a consumer held that left or died; called by its supervisor
-- KEYS  T
-- ARGV  consumer, how it ended ('' = in order, or by our own hand), ttl_ms of the results, then a row for each call that
--       was running; limit_s is the time limit for which it was killed ('' = it died with the process), result what its
--       caller gets if it was taken early
-- out   number of calls marked, as suspects of the crash or as overdue, or lost
-- work  the calls given, with the body of each; HANDED entries without their bodies; 500 calls taken early; ORPHANS
-- Only what ran is marked. What was merely fetched is handed on as if nothing had happened: that delivery does not count.
-- Where there is no crash to mark, the delivery of what ran counts: its body may be why nobody could tell how it ended.
-- rows: CutShort
-- include: _common
-- include: _outcome
-- include: _absent
-- include: _orphans
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _settle
-- include: _member
-- include: _flow
-- include: _ending
local consumer, how, ttl_ms = ARGV[1], ARGV[2], ARGV[3]
-- A child holds fewer; what is beyond is for whoever claims it, and its delivery counts.
local HANDED = 5000

local function pends(stream, entry_id)
  local pending = redis.pcall('XPENDING', stream, GROUP, entry_id, entry_id, 1, consumer)
  return not pending.err and #pending == 1
end

local function hand_on(stream, entry_id, ...)
  redis.call('XCLAIM', stream, GROUP, RELEASED, 0, entry_id, ...)
  redis.call('SADD', T .. ':orphans', RELEASED)
end

local function mark(stream, entry_id, id, limit_s)
  -- An entry that was deleted by hand will never run again.
  if #redis.call('XRANGE', stream, entry_id, entry_id) == 0 then return end
  local as
  if limit_s ~= '' then
    -- Whoever claims it settles this attempt by the task's own rules, without another run.
    redis.call('HSET', OVERDUE, id, limit_s)
    as = 'overdue'
  elseif how ~= '' then
    local seen = redis.call('HGET', CRASHES, id)
    local crashes = 1 + (seen and tonumber(string.match(seen, '^%d+')) or 0)
    redis.call('HSET', CRASHES, id, crashes .. ' ' .. how)
    as = 'crashed'
  end
  -- Handed on by itself, so that a repeated call does not find it and mark it again.
  hand_on(stream, entry_id, 'JUSTID')
  return as
end

local ids, members = {}, {}
for i = 4, #ARGV, WIDTH do
  if ARGV[i + TAKEN] == '1' then
    local id = ARGV[i + ID]
    local record = record_of(id)
    ids[#ids + 1] = id
    if record.flow and is_ours(consumer, '', ARGV[i + ENTRY_ID], id, true) then
      members[id] = { record.flow, record.node, ARGV[i + RESULT] }
    end
  end
end
look_up(ids, 'lost', members)
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
    local as = mark(stream, entry_id, id, limit_s)
    if as then marked[as] = marked[as] + 1 end
  end
end
finish(lost, 'lost', now)
-- What its supervisor did not know of is lost as well: the process is gone.
local unseen = end_taken(consumer, now)
redis.call('ZREM', MISSING, consumer)

local handed = 0
for p = 0, 9 do
  local stream = stream_of(p)
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', HANDED - handed, consumer)
  for _, row in ipairs(pending.err and {} or pending) do
    hand_on(stream, row[1], 'RETRYCOUNT', row[4] - 1, 'JUSTID')
    handed = handed + 1
  end
end

local waits = disown(consumer)
-- The last one to leave also strikes those whose entries were claimed since.
for _, orphan in ipairs(some_orphans()) do
  if not strike_if_empty(orphan) then waits = true end
end
if waits then wake() end
if redis.call('ZCARD', T .. ':consumers') == 0 then drop_wake() end
count('crashed', marked.crashed)
count('overdue', marked.overdue)
return marked.crashed + marked.overdue + #lost + unseen
