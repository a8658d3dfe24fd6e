-- purge: ready or delayed -> gone, a bounded step; what runs is left alone
-- KEYS  T
-- ARGV  count (bound of this step, at most 1,000; it reads a page of entries at a time)
-- out   how many messages were dropped, and whether some may be left (0 | 1)
-- include: _common
-- include: _outcome
-- include: _ready
-- include: _calls
-- include: _slots
-- include: _member
-- include: _flow
-- include: _ending
local limit, now = tonumber(ARGV[1]), now_ms()
local entries, ids, wakes, members = {}, {}, {}, {}
local PURGED = cmsgpack.pack({ 'REVOKED', 1, 0, 'purged' })
local found = 0

local function note(stream, entry_id, fields)
  if fields and fields[1] == 'wake' then
    wakes[#wakes + 1] = entry_id
    return
  end
  entries[#entries + 1] = { stream, entry_id }
  if fields and fields[1] == 'id' then
    ids[#ids + 1] = fields[2]
    local flow, number = flow_in(fields[8])
    if flow then members[fields[2]] = { flow, number, PURGED } end
  end
  -- One that was deleted by hand is pending, and no message.
  if fields then found = found + 1 end
end

-- All that nobody was given yet.
local function note_unread(stream, last)
  while #entries < limit do
    local page = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', math.min(PAGE, limit - #entries))
    if #page == 0 then return end
    for _, entry in ipairs(page) do note(stream, entry[1], entry[2]) end
    last = page[#page][1]
  end
end

-- All that a consumer holds that left.
local function note_orphaned(stream, orphan)
  local last = '-'
  while #entries < limit do
    local page = redis.call('XPENDING', stream, GROUP, last, '+', math.min(PAGE, limit - #entries), orphan)
    if #page == 0 then return end
    for _, row in ipairs(page) do
      local entry = redis.call('XRANGE', stream, row[1], row[1])[1]
      note(stream, row[1], entry and entry[2])
    end
    last = '(' .. page[#page][1]
  end
end

local orphans = redis.call('SMEMBERS', T .. ':orphans')
for p = 0, 9 do
  local last = last_delivered(stream_of(p))
  note_unread(stream_of(p), last or '0-0')
  for _, orphan in ipairs(last and orphans or {}) do note_orphaned(stream_of(p), orphan) end
end
local delayed = {}
if #entries < limit then delayed = redis.call('ZRANGE', T .. ':delayed', 0, limit - #entries - 1) end
for _, id in ipairs(delayed) do
  ids[#ids + 1] = id
  note_delayed(members, id, PURGED)
end
look_up(ids, 'purged', members)
expect('hash', T .. ':messages')

for _, entry in ipairs(entries) do
  redis.call('XACK', entry[1], GROUP, entry[2])
  redis.call('XDEL', entry[1], entry[2])
end
if #wakes > 0 then drop_wakes(wakes) end
if #delayed > 0 then
  redis.call('ZREM', T .. ':delayed', unpack(delayed))
  redis.call('HDEL', T .. ':messages', unpack(delayed))
end
finish(ids, 'purged', now)
return { found + #delayed, #entries + #delayed < limit and 0 or 1 }
