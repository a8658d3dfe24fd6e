-- What becomes of consumers that left. Needs _common.

-- Unregisters consumers whose lease ran out: what they hold is for others from now on. True when there was one.
local function unregister_late(now)
  local late = redis.call('ZRANGEBYSCORE', T .. ':consumers', '-inf', now, 'LIMIT', 0, 16)
  for _, name in ipairs(late) do
    redis.call('ZREM', T .. ':consumers', name)
    redis.call('SADD', T .. ':orphans', name)
  end
  return #late > 0
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
