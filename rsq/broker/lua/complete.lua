-- complete: running or taken -> done, for a batch of entries of one stream, at most 1,000; of flows, at most 100
-- KEYS  T
-- ARGV  consumer, priority, taken ('1' = all of these were acknowledged early: their tokens are the fence, not the lease),
--       way in which they ended, number of reports, number of pages that calls add to flows, what was emitted last ('' =
--       nothing, see _emitted; else this is one call), then rows, then the reports, then the pages
-- out   -1 the consumer lost its lease, nothing written | number of entries settled by this call
-- rows: Completed
-- include: _common
-- include: _outcome
local consumer, stream, taken, way = ARGV[1], stream_of(ARGV[2]), ARGV[3] == '1', ARGV[4]
if not taken and not holds_lease(consumer) then return -1 end
-- Fewer entries are deleted one by one.
local FEW = 4
local FIRST, reports, pages, emitted = 8, tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local now, ids, entry_ids, untraced = now_ms(), {}, {}, {}

-- What the rows up to this place say.
local function note(last)
  for i = FIRST, last, WIDTH do
    local entry_id, id = ARGV[i + ENTRY_ID], ARGV[i + ID]
    ids[#ids + 1], entry_ids[#entry_ids + 1] = id, entry_id
    if leaves_no_trace(entry_id, ARGV[i + RESULT], ARGV[i + TTL_MS], now) then untraced[#untraced + 1] = id end
  end
end

local function publish(row)
  if ARGV[row + RESULT] == '' then return end
  publish_result(ARGV[row + ID], ARGV[row + RESULT], ARGV[row + TTL_MS], way == 'revoked')
end

-- Settles all these entries in a few calls instead of two for each. False when not all of them were pending: then each is
-- to be settled alone, which tells whose outcome is ours.
local function settle_whole()
  if #entry_ids == 0 or redis.call('XACK', stream, GROUP, unpack(entry_ids)) < #entry_ids then return false end
  if #entry_ids < FEW then
    redis.call('XDEL', stream, unpack(entry_ids))
  else
    -- include: _drop
  end
  return true
end

-- Most calls have no rules, and are part of no flow. The rest of this script is not even made for them: each function costs
-- as much as a small command.
if not taken and reports == 0 and emitted == '' then
  note(#ARGV)
  if nothing_known() then
    if #untraced > 0 then expect('stream', ENDED) end
    if settle_whole() then
      for i = FIRST, #ARGV, WIDTH do publish(i) end
      remember_ended(untraced, now)
      count(way, #ids)
      return #ids
    end
  end
end

-- rows: Reported
-- rows: Added
-- include: _ready
-- include: _steps
pages = #ARGV - pages * ADDED.WIDTH
local last, members, stepping = pages - reports * REPORTED.WIDTH, {}, steps(now)
if #ids == 0 then note(last) end
if #untraced > 0 then expect('stream', ENDED) end

-- What flows are told, as if all of these were ours to end. All that is not as simple is put into `members`, as `look_up`
-- takes them; gives whether that is nothing.
local function step()
  local by_flow, order, skips, argv = {}, {}, {}, ARGV
  local FLOW, NODE, SKIP, VALUE, PLACES = REPORTED.FLOW, REPORTED.NODE, REPORTED.SKIP, REPORTED.VALUE, REPORTED.WIDTH
  local k = last + 1
  for i = FIRST, last, WIDTH do
    local flow, value = argv[k + FLOW], argv[k + VALUE]
    if value == '' then
      local skip = argv[k + SKIP]
      local from = skips[skip]
      if not from then
        from = tonumber(skip) + 1
        skips[skip] = from
      end
      value = string.sub(argv[i + RESULT], from)
    end
    local ended = by_flow[flow]
    if ended then
      local j = #ended
      ended[j + 1], ended[j + 2], ended[j + 3] = argv[k + NODE], value, argv[i + ID]
    else
      by_flow[flow], order[#order + 1] = { argv[k + NODE], value, argv[i + ID] }, flow
    end
    k = k + PLACES
  end
  local steps_only = way == 'succeeded' and pages == #ARGV
  if steps_only then stepping.take(order, by_flow) end
  for _, flow in ipairs(order) do
    local ended = by_flow[flow]
    for j = 1, stepping.has(flow) and 0 or #ended, 3 do
      members[ended[j + 2]] = { flow, tonumber(ended[j]), ended[j + 1] }
    end
  end
  return next(members) == nil
end

local steps_only, whole = not taken and reports > 0 and emitted == '' and step(), nil
if steps_only and nothing_known() then
  whole = settle_whole()
  if whole then
    for i = FIRST, last, WIDTH do publish(i) end
    remember_ended(untraced, now)
    stepping.write()
    count(way, #ids)
    return #ids
  end
end

-- include: _calls
-- include: _slots
-- include: _settle
-- include: _emitted
-- include: _reports
-- include: _member
-- include: _flow
-- include: _ending
local settled, traceless = {}, {}
for _, id in ipairs(untraced) do traceless[id] = true end
untraced = {}

-- What these add to flows goes with their reports.
local function tell()
  for i = pages + 1, #ARGV, ADDED.WIDTH do
    local member = members[ARGV[FIRST + tonumber(ARGV[i + ADDED.ROW]) * WIDTH + ID]]
    if member then
      local head, nodes = cmsgpack.unpack(ARGV[i + ADDED.HEAD]), cmsgpack.unpack(ARGV[i + ADDED.NODES])
      member[4] = member[4] or {}
      member[4][#member[4] + 1] = { ARGV[i + ADDED.FLOW], ARGV[i + ADDED.KEY], head, nodes }
    end
  end
  look_up(ids, way, members, stepping)
end

if taken or emitted ~= '' then members = members_in(FIRST, pages, reports, consumer, stream, taken) or {} end
tell()
local emit = last_emission(consumer, stream, ARGV[FIRST + ENTRY_ID], ids[1], taken, emitted)
if not taken and not whole then
  whole = settle_whole()
  if not whole and reports > 0 then
    -- Some were settled before, so what was worked out is void. That is rare: then each is looked at by itself.
    members, stepping = members_in(FIRST, pages, reports, consumer, stream, taken), nil
    tell()
  end
end
for i = FIRST, last, WIDTH do
  local id = ARGV[i + ID]
  if whole or settle(consumer, stream, ARGV[i + ENTRY_ID], id, taken) then
    settled[#settled + 1] = id
    emit()
    publish(i)
    if traceless[id] then untraced[#untraced + 1] = id end
  end
end
remember_ended(untraced, now)
if stepping then stepping.write() end
finish(settled, way, now)
return #settled
