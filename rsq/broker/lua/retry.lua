-- retry: running or taken -> delayed, for a batch of entries of one stream, at most 1,000; the next attempt, or the same
-- one put off
-- KEYS  T
-- ARGV  consumer, priority, taken (as in complete), counter ('retried' | 'deferred' | 'limited'), what was
--       emitted last (as in complete), then rows
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- rows: Retried
-- include: _common
-- include: _outcome
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _settle
-- include: _emitted
-- include: _member
-- include: _flow
-- include: _ending
local consumer, priority, taken, counter = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
if not taken and not holds_lease(consumer) then return -1 end
local now, ids, settled = now_ms(), {}, {}
for i = 6, #ARGV, WIDTH do
  ids[#ids + 1] = ARGV[i + ID]
  if ARGV[i + SLOT] ~= '' then expect_slot(ARGV[i + SLOT]) end
end
local some_known = look_up(ids)
expect('hash', CALLS)
expect_delayed(priority)
local emit = last_emission(consumer, stream_of(priority), ARGV[6 + ENTRY_ID], ids[1], taken, ARGV[5])

-- What was revoked meanwhile does not wait: it comes back at once, to be settled without another run.
local function delay_of(id, delay_ms)
  return some_known and revoked_until(id) and 0 or tonumber(delay_ms)
end

for i = 6, #ARGV, WIDTH do
  local id, slot = ARGV[i + ID], ARGV[i + SLOT]
  local was_taken = taken and record_of(id).taken
  if settle(consumer, stream_of(priority), ARGV[i + ENTRY_ID], id, taken) then
    settled[#settled + 1] = id
    emit()
    add_delayed(now, now + delay_of(id, ARGV[i + DELAY_MS]), priority, id, ARGV[i + TASK], ARGV[i + BODY], ARGV[i + META])
    -- It keeps its key, and its place in a line.
    local record = record_of(id)
    -- It has run with the newest arguments, which have come back with it, and what they bring is counted on from there.
    local came_back = record.begun and record.newer
    if came_back then record.newer, record.revision = nil, nil end
    if slot ~= '' then
      park(id, record, slot, tonumber(ARGV[i + MOST]), now, math.min(#settled, 999))
    elseif record.slot or was_taken or came_back then
      free_slot(id, record, now)
      save(id, record)
    end
    if slot == '' then leave_line(id, record) end
    -- Nothing more comes of this run.
    if record.output then
      record.output.token = ''
      save(id, record)
    end
    if record.adds then
      drop_added(record)
      save(id, record)
    end
  end
end
if some_known then forget_overdue(settled) end
count(counter, #settled)
return #settled
