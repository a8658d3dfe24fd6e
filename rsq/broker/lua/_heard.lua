-- The lease clock: a lease runs out only while its holder could have renewed it. Needs _common.
-- T:heard is "<ms when somebody last renewed> <shortest lease since the last silence, ms>", with a "-" behind it once a
-- silence was noticed. It lies beside the consumers that it judges, and says nothing of those of another queue.
local HEARD, HEARD_TTL_MS = T .. ':heard', 3600000
-- So long everybody has after a silence to find the server again and to renew; a lease, where that is shorter (ms).
local GRACE_MS = 4000
-- The fraction of a deadline counts the graces since its consumer renewed: one that is dead has no more than these.
local MOST_GRACES, GRACE = 2, 0.25

local function set_deadline(name, deadline, graces)
  redis.call('ZADD', T .. ':consumers', 'XX', string.format('%.2f', deadline + graces * GRACE), name)
end

-- Deadlines that a silence of whatever cause has overtaken are set anew; those that a clock which ran ahead has written
-- are set back by as much.
local function forgive(now, ahead_ms, grace_ms)
  local until_ms = now + grace_ms
  local rows = redis.call('ZRANGEBYSCORE', T .. ':consumers', '-inf', ahead_ms > 0 and '+inf' or until_ms, 'WITHSCORES')
  for i = 1, #rows, 2 do
    local deadline = math.floor(tonumber(rows[i + 1]))
    local graces = (tonumber(rows[i + 1]) - deadline) / GRACE
    deadline = deadline - ahead_ms
    if deadline < until_ms and graces < MOST_GRACES then deadline, graces = until_ms, graces + 1 end
    set_deadline(rows[i], deadline, graces)
  end
end

-- Comes before anybody is found late. For more than half a lease, or by another clock, nobody was heard: then nobody could
-- renew. Gives the shortest lease, or nil after a silence. Work: one GET; after a silence all consumers.
local function listen(now)
  local at, shortest, noticed = string.match(redis.call('GET', HEARD) or '', '^(%d+) (%d+)(%-?)$')
  at, shortest = tonumber(at), tonumber(shortest)
  local silent = not at or now < at or now - at > shortest / 2
  if silent and redis.call('EXISTS', T .. ':consumers') == 1 then
    forgive(now, at and math.max(0, at - now) or 0, math.min(GRACE_MS, shortest or GRACE_MS))
    -- The next one to look finds no second silence.
    redis.call('SET', HEARD, now .. ' ' .. (shortest or GRACE_MS) .. '-', 'PX', HEARD_TTL_MS)
  end
  if not silent and noticed == '' then return shortest end
end

-- Somebody has renewed. `shortest` is what `listen` gave.
local function hear(now, lease_ms, shortest)
  redis.call('SET', HEARD, now .. ' ' .. math.min(lease_ms, shortest or lease_ms), 'PX', HEARD_TTL_MS)
end
