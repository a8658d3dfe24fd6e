-- replace: running or taken -> a flow, of which one call has its id and stands for it from now on, also in its own flow
-- KEYS  T
-- ARGV  consumer, priority, taken (as in complete), entry id, task id, flow id and head of the new flow as in `flow`, then
--       the rows of its last page; earlier ones were given to `flow`. Its `fixed` tells which call stands for
--       which one
-- out   -1 the consumer lost its lease, nothing written | 1 replaced by this call, or ended with its flow, where that has
--       ended before its time | 0 it was settled before
-- work  one call; the rows given; what a start releases, see _flow
-- rows: Stored
-- include: _common
-- include: _outcome
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _settle
-- include: _member
-- include: _flow
-- include: _page
-- include: _ending
local consumer, stream, taken, entry_id, id = ARGV[1], stream_of(ARGV[2]), ARGV[3] == '1', ARGV[4], ARGV[5]
if not taken and not holds_lease(consumer) then return -1 end
if not is_ours(consumer, stream, entry_id, id, taken) then return 0 end
local now, page, head = now_ms(), page_from(ARGV[6], 8), cmsgpack.unpack(ARGV[7])
if page.lacks(head) then error('ERR earlier pages of the flow are gone', 0) end
local new = flows(now)
local around, number, result, ttl_ms, way = new.over(head)
look_up({ id }, way, way and { [id] = { around, number, result } })
if way then
  -- What would stand for it starts too late.
  settle(consumer, stream, entry_id, id, taken)
  page.drop()
  publish_result(id, result, ttl_ms, true)
  finish({ id }, way, now)
  return 1
end
new.check()
page.start(new, head)
new.go_on()

settle(consumer, stream, entry_id, id, taken)
-- Its key, and how often it has crashed, are those of the call that stands for it.
local record = record_of(id)
free_slot(id, record, now)
leave_line(id, record)
record.line, record.since, record.turn, record.asked = nil, nil, nil, nil
record.versioned, record.version, record.version_ttl_ms = nil, nil, nil
if not none_known then
  save(id, record)
  forget_overdue({ id })
end
if new.write() > 0 then wake() end
count('replaced', 1)
return 1
