-- complete: running or taken -> done, for a batch of entries of one stream, at most 1,000; of flows, at most 200
-- KEYS  T
-- ARGV  consumer, priority, taken ('1' = all of these were acknowledged early: their tokens are the fence, not the lease),
--       way in which they ended, number of reports, number of pages that calls add to their batches, then rows, then the
--       reports, then the pages
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- rows: Completed
-- rows: Reported
-- rows: Added
-- include: _common
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _settle
-- include: _reports
-- include: _member
-- include: _flow
-- include: _ending
local consumer, stream, taken, way = ARGV[1], stream_of(ARGV[2]), ARGV[3] == '1', ARGV[4]
if not taken and not holds_lease(consumer) then return -1 end
local now, ids, entry_ids, settled, untraced, traceless = now_ms(), {}, {}, {}, {}, {}
local pages = #ARGV - tonumber(ARGV[6]) * ADDED.WIDTH
local members, last = members_in(7, pages, tonumber(ARGV[5]), consumer, stream, taken)
for i = pages + 1, #ARGV, ADDED.WIDTH do
  local member = members[ARGV[7 + tonumber(ARGV[i + ADDED.ROW]) * WIDTH + ID]]
  if member then
    local head, nodes = cmsgpack.unpack(ARGV[i + ADDED.HEAD]), cmsgpack.unpack(ARGV[i + ADDED.NODES])
    member[4] = { ARGV[i + ADDED.KEY], head, nodes }
  end
end
for i = 7, last, WIDTH do
  local entry_id, id = ARGV[i + ENTRY_ID], ARGV[i + ID]
  ids[#ids + 1], entry_ids[#entry_ids + 1] = id, entry_id
  if leaves_no_trace(entry_id, ARGV[i + RESULT], ARGV[i + TTL_MS], now) then traceless[id] = true end
end
look_up(ids, way, members)
if next(traceless) then expect('stream', ENDED) end

local whole = not taken and settle_whole(stream, entry_ids)
for i = 7, last, WIDTH do
  local id, result = ARGV[i + ID], ARGV[i + RESULT]
  if whole or settle(consumer, stream, ARGV[i + ENTRY_ID], id, taken) then
    settled[#settled + 1] = id
    if result ~= '' then publish_result(id, result, ARGV[i + TTL_MS]) end
    if traceless[id] then untraced[#untraced + 1] = id end
  end
end
remember_ended(untraced, now)
finish(settled, way, now)
return #settled
