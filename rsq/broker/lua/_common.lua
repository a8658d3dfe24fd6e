-- What every script shares. KEYS[1] is the queue's prefix, never a key itself; all keys below are made from it, so all stay in one slot.
local T = KEYS[1]
local GROUP = 'rsq'
-- In a cluster it is another one; see rsq.broker.scripts.
local PUBLISH = 'PUBLISH'
local RELEASED = 'released'
-- For this long a producer may repeat an enqueue whose reply was lost (ms), where none has asked for more; and the most
-- that one may ask for.
local REPEAT_WINDOW_MS, LONGEST_REPEAT_WINDOW_MS = 20000, 3600000
-- Entries that one command may bring into a script: with the largest bodies they already are a hundred megabytes.
local PAGE = 100

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local window_ms
local function repeat_window()
  if not window_ms then
    local asked = redis.pcall('GET', T .. ':window')
    asked = type(asked) == 'string' and string.match(asked, '^%d+$') or REPEAT_WINDOW_MS
    window_ms = math.max(REPEAT_WINDOW_MS, math.min(LONGEST_REPEAT_WINDOW_MS, tonumber(asked)))
  end
  return window_ms
end

-- Here and below `queue` is the prefix of another queue of the partition, where it is not this one.
local function stream_of(priority, queue)
  if tonumber(priority) == 0 then return (queue or T) .. ':stream' end
  return (queue or T) .. ':stream:' .. priority
end

-- The last entry that the group was given, or nil where there is no group.
local function last_delivered(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, group in ipairs(groups.err and {} or groups) do
    local info = {}
    for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
    if info.name == GROUP then return info['last-delivered-id'] end
  end
end

-- How the queue is closed: 'moved' = it lies in another partition, as the first to use it has found, so nothing is done
-- here any more; 'refuse' = it takes no calls (`rsq pause --refuse`); something else = nobody reads it; false = it is open.
local function pause_of(queue)
  return redis.call('GET', (queue or T) .. ':paused')
end

-- The fence: a consumer that is not registered owns nothing any more and may write nothing.
local function holds_lease(consumer)
  return redis.call('ZSCORE', T .. ':consumers', consumer)
end

-- Calls that this consumer has acknowledged early, or answers for.
local function taken_by(consumer) return T .. ':taken:' .. consumer end

-- Raises where one of these keys holds something else: asked before the first write, since a script is not undone.
local SIZE = { hash = 'HLEN', zset = 'ZCARD', set = 'SCARD', stream = 'XLEN', string = 'STRLEN', list = 'LLEN' }
local expected = {}
local function expect(kind, key, ...)
  if not expected[key] then
    redis.call(SIZE[kind], key)
    expected[key] = true
  end
  if ... then return expect(kind, ...) end
end

-- Comes last, and may fail: a counter that nobody can read must not undo what was done.
local function count(counter, by)
  if by > 0 then redis.pcall('HINCRBY', T .. ':stats', counter, by) end
end

-- Ids that are not to start, with the time when that is forgotten. Half a millisecond more: it is to be interrupted, too.
local REVOKED = T .. ':revoked'

local function revoked_until(id, queue)
  return redis.call('ZSCORE', queue and queue .. ':revoked' or REVOKED, id)
end

-- A server at maxmemory refuses a script whose first write needs memory, and lets later ones pass. What keeps workers
-- going begins with a write that changes nothing: else their leases would run out, and nobody could work the server empty.
local function go_on_when_full()
  redis.call('ZREM', T .. ':consumers', '')
end
