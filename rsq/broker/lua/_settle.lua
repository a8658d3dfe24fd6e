-- How an entry ends, whatever its outcome. Needs _common.

-- The token of an early acknowledgement belongs to one consumer and one delivery: a commit that is repeated late must not
-- spend the token of the call's next attempt.
local function token_of(consumer, entry_id)
  return consumer .. ' ' .. entry_id
end

-- True when the token was still there; it is spent by this call.
local function settle_taken(consumer, entry_id, id)
  local key = T .. ':taken:' .. id
  if entry_id ~= '' and redis.call('GET', key) ~= token_of(consumer, entry_id) then return false end
  return redis.call('DEL', key) == 1
end

-- True when the outcome is ours to write: the entry left the stream by this call, or its token was still there.
-- False for what was settled before: a commit that is repeated after a lost reply.
local function settle(consumer, stream, entry_id, id)
  if entry_id ~= '' then
    redis.call('XACK', stream, GROUP, entry_id)
    if redis.call('XDEL', stream, entry_id) == 1 then return true end
  end
  return settle_taken(consumer, entry_id, id)
end

-- Settles all entries in ARGV, from `first` on in every `step`-th place, in two calls instead of two for each. False when
-- not all of them were pending: then each is to be settled alone, which tells whose outcome is ours.
local function settle_whole(stream, first, step)
  local entry_ids = {}
  for i = first, #ARGV, step do
    if ARGV[i] == '' then return false end
    entry_ids[#entry_ids + 1] = ARGV[i]
  end
  if #entry_ids == 0 or redis.call('XACK', stream, GROUP, unpack(entry_ids)) < #entry_ids then return false end
  redis.call('XDEL', stream, unpack(entry_ids))
  return true
end

local function publish_result(id, result, ttl_ms)
  local key = T .. ':result:' .. id
  redis.call('SET', key, result, 'PX', ttl_ms)
  redis.call('PUBLISH', key, result)
end

-- An attempt that was killed for its time limit is settled; the next one has its own time.
local function forget_overdue(ids)
  for _, id in ipairs(ids) do redis.call('HDEL', T .. ':overdue', id) end
end

local function forget_crashes(ids)
  if #ids == 0 or redis.call('EXISTS', T .. ':crashes', T .. ':overdue') == 0 then return end
  for _, id in ipairs(ids) do redis.call('HDEL', T .. ':crashes', id) end
  forget_overdue(ids)
end

-- Who revoked them has what he wanted, or came too late; a later call with the same id is another one.
local function forget_marks(ids)
  if #ids == 0 or redis.call('EXISTS', T .. ':revoked') == 0 then return end
  redis.call('ZREM', T .. ':revoked', unpack(ids))
  redis.call('ZREM', T .. ':terminate', unpack(ids))
end

-- A call whose result is not kept, or not for long, leaves nothing by which a repeated enqueue could know it. So the ids of
-- such calls are remembered that ended within the repeat window after their enqueue; later ones cannot be repeated any more.
local function leaves_no_trace(entry_id, id, result, ttl_ms, now)
  if id == '' or (result ~= '' and tonumber(ttl_ms) >= REPEAT_WINDOW_MS) then return false end
  return entry_id == '' or tonumber(string.match(entry_id, '^%d+')) > now - REPEAT_WINDOW_MS
end

local function remember_ended(ids, now)
  if #ids == 0 then return end
  redis.call('XADD', T .. ':ended', 'MINID', '~', now - REPEAT_WINDOW_MS, '*', 'ids', table.concat(ids, ' '))
  redis.call('PEXPIRE', T .. ':ended', REPEAT_WINDOW_MS)
end
