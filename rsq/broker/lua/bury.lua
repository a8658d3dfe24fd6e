-- bury: running or taken -> dead, for a batch of entries of one stream, at most 1,000; of flows, at most 100
-- KEYS  T
-- ARGV  consumer, priority, taken (as in complete), max_length, max_age_ms, number of reports, what was
--       emitted last (as in complete), then rows, then the reports
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- rows: Buried
-- rows: Reported
-- include: _common
-- include: _outcome
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _settle
-- include: _emitted
-- include: _reports
-- include: _member
-- include: _flow
-- include: _ending
local consumer, priority, taken = ARGV[1], ARGV[2], ARGV[3] == '1'
if not taken and not holds_lease(consumer) then return -1 end
local now, dead, max_length = now_ms(), T .. ':dead', string.format('%.0f', tonumber(ARGV[4]))
-- Redis takes no time before its epoch.
local max_age_ms = math.min(tonumber(ARGV[5]), now)
local ids, settled, untraced = {}, {}, {}
local members, last = members_in(8, #ARGV, tonumber(ARGV[6]), consumer, stream_of(priority), taken)
for i = 8, last, WIDTH do ids[#ids + 1] = ARGV[i + ID] end
look_up(ids, 'dead', members)
local emit = last_emission(consumer, stream_of(priority), ARGV[8 + ENTRY_ID], ids[1], taken, ARGV[7])
expect('stream', dead, ENDED)

for i = 8, last, WIDTH do
  local entry_id, id, result, ttl_ms = ARGV[i + ENTRY_ID], ARGV[i + ID], ARGV[i + RESULT], ARGV[i + TTL_MS]
  if settle(consumer, stream_of(priority), entry_id, id, taken) then
    local record = record_of(id)
    settled[#settled + 1] = id
    emit()
    local newer = record.newer or {}
    local letter = {
      'id', id, 'task', newer[1] or ARGV[i + TASK], 'body', newer[2] or ARGV[i + BODY], 'meta', newer[3] or ARGV[i + META],
      'reason', ARGV[i + REASON], 'error', ARGV[i + ERROR], 'attempts', ARGV[i + ATTEMPTS], 'priority', priority,
      'sent', string.match(entry_id, '^%d*'),
    }
    -- Its key is free now; who sends it again asks for it.
    if record.key then
      letter[#letter + 1] = 'dedupe'
      letter[#letter + 1] = cmsgpack.pack({ record.key, record.ends, record.ttl_ms, record.replaceable or 0 })
    end
    if record.order then
      letter[#letter + 1] = 'order'
      letter[#letter + 1] = record.order
    end
    redis.call('XADD', dead, 'MAXLEN', '~', max_length, '*', unpack(letter))
    if result ~= '' then publish_result(id, result, ttl_ms) end
    if leaves_no_trace(entry_id, result, ttl_ms, now) then untraced[#untraced + 1] = id end
  end
end
if #settled > 0 then
  redis.call('XTRIM', dead, 'MINID', '~', string.format('%.0f', now - max_age_ms))
  -- The last letter's age: a queue that nobody uses any more leaves nothing behind.
  redis.call('PEXPIRE', dead, string.format('%.0f', max_age_ms))
end
remember_ended(untraced, now)
finish(settled, 'dead', now)
return #settled
