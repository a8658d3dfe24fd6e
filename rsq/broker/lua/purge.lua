-- purge: ready or delayed -> gone, a bounded step; what runs is left alone
-- KEYS  T
-- ARGV  count (bound of this step)
-- out   how many messages were dropped; fewer than count means that none are left
-- include: _common
-- include: _settle
-- include: _ready
-- include: _held
local limit, dropped, now = tonumber(ARGV[1]), 0, now_ms()

local function forget(id)
  forget_crashes({ id })
  forget_marks({ id })
  give_up({ id }, now)
end

local function drop(stream, entry_id, fields)
  redis.call('XACK', stream, GROUP, entry_id)
  redis.call('XDEL', stream, entry_id)
  if not fields or fields[1] == 'wake' then return end
  if fields[1] == 'id' then forget(fields[2]) end
  dropped = dropped + 1
end

local orphans = redis.call('SMEMBERS', T .. ':orphans')
for p = 0, 9 do
  local stream = stream_of(p)
  local last = last_delivered(stream)
  while dropped < limit do
    local page = redis.call('XRANGE', stream, '(' .. (last or '0-0'), '+', 'COUNT', math.min(PAGE, limit - dropped))
    if #page == 0 then break end
    for _, entry in ipairs(page) do drop(stream, entry[1], entry[2]) end
  end
  for _, orphan in ipairs(last and orphans or {}) do
    while dropped < limit do
      local page = redis.call('XPENDING', stream, GROUP, '-', '+', math.min(PAGE, limit - dropped), orphan)
      if #page == 0 then break end
      for _, row in ipairs(page) do
        local entry = redis.call('XRANGE', stream, row[1], row[1])[1]
        drop(stream, row[1], entry and entry[2])
      end
    end
  end
  if dropped >= limit then return dropped end
end
for _, id in ipairs(redis.call('ZRANGE', T .. ':delayed', 0, limit - dropped - 1)) do
  redis.call('ZREM', T .. ':delayed', id)
  redis.call('HDEL', T .. ':messages', id)
  forget(id)
  dropped = dropped + 1
end
return dropped
