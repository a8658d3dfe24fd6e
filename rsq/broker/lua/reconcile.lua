-- reconcile: running -> ready, for consumers of the group that have no lease record: evicted, failed over, or made by a
-- read that reached the server after its consumer had left
-- KEYS  T
-- ARGV  lease_ms, every_ms (no sooner after the last look, whoever took it)
-- out   names of consumers whose entries were made claimable
-- work  all consumers of the group, which Redis lists as a whole: ten microseconds each, once in a lease; 20 calls
-- An empty one is deleted, here, where nothing can be delivered to it between the look and the deletion. One that holds
-- entries must have been idle for a lease: its registration may be on its way.
-- A call that was acknowledged early, and for which nobody answers, is found here as well: some are looked at each time.
-- include: _common
-- include: _orphans
-- include: _ready
-- include: _calls
local lease_ms, found = tonumber(ARGV[1]), {}
go_on_when_full()
expect_orphans()
if not redis.call('SET', T .. ':reconciled', '', 'NX', 'PX', ARGV[2]) then return found end
for p = 0, 9 do
  local stream = stream_of(p)
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, GROUP)
  if not consumers.err then
    for _, row in ipairs(consumers) do
      local about = {}
      for i = 1, #row, 2 do about[row[i]] = row[i + 1] end
      local name = about['name']
      if not holds_lease(name) and redis.call('SISMEMBER', T .. ':orphans', name) == 0 then
        if about['pending'] == 0 then
          redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, name)
        elseif about['idle'] >= lease_ms then
          miss(name, now_ms())
          redis.call('SADD', T .. ':orphans', name)
          found[#found + 1] = name
        end
      end
    end
  end
end
if #found > 0 then wake() end

for _, id in ipairs(redis.call('HRANDFIELD', CALLS, 20)) do
  local taken = record_of(id).taken
  if taken and not holds_lease(taken[1]) then
    redis.call('SADD', taken_by(taken[1]), id)
    miss(taken[1], now_ms())
  end
end
return found
