-- release: running -> ready, for entries of one stream that were fetched and go back, with no mark and at once
-- KEYS  T
-- ARGV  consumer, priority, then the entry ids
-- out   -1 the consumer lost its lease | number of entries handed back
-- work  the entries given, without their bodies
-- They stay pending, under a consumer that is always an orphan, so they keep their place ahead of newer entries.
-- Without a lease nothing is handed back, but what a read has brought under a name that was struck is for others, too.
-- include: _common
-- include: _orphans
-- include: _ready
local consumer, stream, released = ARGV[1], stream_of(ARGV[2]), 0
if not holds_lease(consumer) then
  if disown(consumer) then wake() end
  return -1
end
expect('set', T .. ':orphans')
for i = 3, #ARGV do
  -- Where the stream or its group is gone there is nothing to hand back.
  local pending = redis.pcall('XPENDING', stream, GROUP, ARGV[i], ARGV[i], 1, consumer)[1]
  if pending then
    -- This delivery came to nothing: the count goes back, and the next claim raises it again.
    redis.call('XCLAIM', stream, GROUP, RELEASED, 0, ARGV[i], 'RETRYCOUNT', pending[4] - 1, 'JUSTID')
    released = released + 1
  end
end
if released > 0 then
  redis.call('SADD', T .. ':orphans', RELEASED)
  wake()
end
return released
