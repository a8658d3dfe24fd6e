-- take: running -> taken, the early acknowledgement of one entry (acks_late=False), before its body starts
-- KEYS  T
-- ARGV  consumer, priority, entry id, task id, result if it is lost, its ttl_ms, its flow ('' = none), its number in that
-- out   -1 the consumer lost its lease, nothing written | 1 taken, the body may start | 0 somebody else ended it
-- The token lets the outcome be committed once, under the same consumer and entry id, and lets a repeated call know that
-- it was this consumer that took it.
-- include: _common
-- include: _ready
-- include: _calls
local consumer, stream, entry_id, id = ARGV[1], stream_of(ARGV[2]), ARGV[3], ARGV[4]
if not holds_lease(consumer) then return -1 end
local record, token = record_of(id), token_of(consumer, entry_id)
if record.taken and record.taken[2] == token then return 1 end
expect('set', taken_by(consumer))

redis.call('XACK', stream, GROUP, entry_id)
if redis.call('XDEL', stream, entry_id) == 0 then return 0 end
record.taken = { consumer, token, ARGV[5], ARGV[6] }
if ARGV[7] ~= '' then record.flow, record.node = ARGV[7], tonumber(ARGV[8]) end
save(id, record)
redis.call('SADD', taken_by(consumer), id)
return 1
