-- prepare: running or taken -> the same; a page of calls that its body adds to a flow is kept until it succeeds
-- KEYS  T
-- ARGV  consumer, priority, taken (as in complete), entry id, task id, name (of all that it adds to that flow), number of the
--       page, page (packed: head and rows, as in `flow_add`), ttl_ms
-- out   -1 the consumer lost its lease | 0 this run is over; with these nothing was written | 1 it is there
-- work  the nodes given, 1,000 at most
-- Nothing of it is released before `complete` says so; it goes with any other end of the run.
-- include: _common
-- include: _ready
-- include: _calls
-- include: _settle
local consumer, stream, taken, entry_id, id, name = ARGV[1], stream_of(ARGV[2]), ARGV[3] == '1', ARGV[4], ARGV[5], ARGV[6]
if not taken and not holds_lease(consumer) then return -1 end
if taken then
  if not is_ours(consumer, stream, entry_id, id, true) then return 0 end
else
  local pending = redis.pcall('XPENDING', stream, GROUP, entry_id, entry_id, 1, consumer)
  if pending.err or #pending == 0 then return 0 end
end
local token, record, known = token_of(consumer, entry_id), record_of(id), false
expect('hash', CALLS, added_by(name))

-- What a run before this one has added came to nothing.
if record.adds and record.adds[1] ~= token then drop_added(record) end
record.adds = record.adds or { token }
for i = 2, #record.adds do known = known or record.adds[i] == name end
if not known then
  record.adds[#record.adds + 1] = name
  save(id, record)
end
redis.call('HSET', added_by(name), ARGV[7], ARGV[8])
redis.call('PEXPIRE', added_by(name), ARGV[9])
return 1
