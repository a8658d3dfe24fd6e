-- take: running -> taken, the early acknowledgement of one entry (acks_late=False), before its body starts
-- KEYS  T
-- ARGV  consumer, priority, entry id, task id, token_ttl_ms
-- out   -1 the consumer lost its lease, nothing written | 1 taken, the body may start | 0 somebody else ended it
-- The token lets the outcome be committed once, under the same entry id, and lets a repeated call know that it was this
-- consumer that took it.
-- include: _common
-- include: _settle
-- include: _ready
-- include: _held
local consumer, stream, entry_id, id = ARGV[1], stream_of(ARGV[2]), ARGV[3], ARGV[4]
local key, token = T .. ':taken:' .. id, token_of(consumer, entry_id)
if not holds_lease(consumer) then return -1 end
redis.call('XACK', stream, GROUP, entry_id)
if redis.call('XDEL', stream, entry_id) == 1 then
  redis.call('SET', key, token, 'PX', ARGV[5])
  local held = held_by(id)
  if next(held) then
    held.taken = 1
    keep(id, held)
  end
  return 1
end
return redis.call('GET', key) == token and 1 or 0
