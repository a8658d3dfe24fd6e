-- emit: running or taken -> the same; what its body emits is added to its output, each value once
-- KEYS  T
-- ARGV  consumer, priority, taken (as in complete), entry id, task id, what was emitted (packed, see _emitted)
-- out   -1 the consumer lost its lease | 0 this run is over; with these nothing was written | 1 it is all there
-- work  the values given, at most 500
-- Redis itself refuses what was added before, and what comes late: an id that is not above the last one.
-- include: _common
-- include: _outcome
-- include: _ready
-- include: _calls
-- include: _settle
-- include: _emitted
local consumer, stream, taken, entry_id, id = ARGV[1], stream_of(ARGV[2]), ARGV[3] == '1', ARGV[4], ARGV[5]
if not taken and not holds_lease(consumer) then return -1 end
local token, output = token_of(consumer, entry_id), record_of(id).output
if taken then
  if not is_ours(consumer, stream, entry_id, id, true) then return 0 end
elseif not output or output.token ~= token then
  -- Whoever runs it holds it: it may have been settled since this was sent.
  local pending = redis.pcall('XPENDING', stream, GROUP, entry_id, entry_id, 1, consumer)
  if pending.err or #pending == 0 then return 0 end
end
local write = emission(id, token, ARGV[6])
if not write then return 0 end

write()
save(id, record_of(id))
return 1
