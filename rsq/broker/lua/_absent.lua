-- Who is to be looked at since he left. Needs _common.
-- Consumers and orphans that one call looks at.
local LATE, ORPHANS = 100, 16

-- Consumers whose lease ran out; where they are LATE there may be more. `listen` comes first.
local function late_ones(now)
  return redis.call('ZRANGEBYSCORE', T .. ':consumers', '-inf', now, 'LIMIT', 0, LATE)
end

-- Some of the consumers whose entries anybody may claim; the next call draws others.
local function some_orphans()
  return redis.call('SRANDMEMBER', T .. ':orphans', ORPHANS)
end
