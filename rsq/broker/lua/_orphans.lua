-- What becomes of consumers that left. Needs _common.
-- A consumer that nobody hears of may come back with what it acknowledged early. After this long (ms) that is lost.
local MISSING, COME_BACK_MS = T .. ':missing', 30000

local function expect_orphans()
  expect('set', T .. ':orphans')
  expect('zset', MISSING)
end

local function miss(name, now)
  if redis.call('EXISTS', taken_by(name)) == 1 then redis.call('ZADD', MISSING, 'NX', now + COME_BACK_MS, name) end
end

-- What these consumers, whose lease ran out, hold is for others from now on.
local function unregister(late, now)
  if #late > 0 then expect_orphans() end
  for _, name in ipairs(late) do
    miss(name, now)
    redis.call('ZREM', T .. ':consumers', name)
    redis.call('SADD', T .. ':orphans', name)
  end
end

-- Strikes a consumer from the group once it holds nothing any more: deleting it earlier would lose what it holds.
local function strike_if_empty(name)
  for p = 0, 9 do
    local pending = redis.pcall('XPENDING', stream_of(p), GROUP, '-', '+', 1, name)
    if not pending.err and #pending > 0 then return false end
  end
  for p = 0, 9 do redis.pcall('XGROUP', 'DELCONSUMER', stream_of(p), GROUP, name) end
  redis.call('SREM', T .. ':orphans', name)
  return true
end

-- What a consumer without a lease holds is for others. True when that is anything.
local function disown(name)
  if strike_if_empty(name) then return false end
  redis.call('SADD', T .. ':orphans', name)
  return true
end
