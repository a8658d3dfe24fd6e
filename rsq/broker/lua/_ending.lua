-- The one end of a call, however it comes: what it holds is given up here, and nowhere else. Needs _common, _outcome, _ready,
-- _calls, _slots and _flow.
-- First `look_up`, which reads and checks; then the script's own writes; then `finish`, which raises nothing any more.

-- Each way in which a call ends; they are counted by these names.
local WAYS = {
  succeeded = 1, ignored = 1, expired = 1, superseded = 1, revoked = 1, dead = 1, purged = 1, lost = 1,
}

-- The ways of which a flow's errbacks hear, and those in which a call has succeeded.
local LOUD, WELL = { dead = 1, lost = 1 }, { succeeded = 1, ignored = 1 }
local told, any_flows

-- Adds a delayed call that is to end with this packed result to `members`, where it is part of a flow.
local function note_delayed(members, id, result)
  if any_flows == nil then any_flows = redis.call('EXISTS', string.match(T, '^{[^}]*}') .. '::flows') == 1 end
  if not any_flows then return end
  local readable, message = pcall(cmsgpack.unpack, redis.call('HGET', T .. ':messages', id) or '')
  local flow, number = flow_in(readable and type(message) == 'table' and message[4])
  if flow then members[id] = { flow, number, result } end
end

-- What follows from the end of these calls in their flows.
-- members  task id -> { flow id, number, value where it went well, else packed result, what it adds to flows: of each
--          page { flow id, key, head, rows } as in _flow_said, or nil }, of those that are ours to end
-- stepping  of those that are no members, what was seen to in short; or nil
local function tell_flows(ids, way, members, stepping)
  told = flows(now_ms(), stepping)
  told.check()
  for _, member in pairs(members) do told.await(member[1], member[2]) end
  for _, id in ipairs(ids) do
    local member = members[id]
    if member then
      local value, added = WELL[way] and member[3] or FAILED .. member[3], member[4]
      for _, page in ipairs(added or {}) do told.add(page[1], page[2], page[3], page[4], true, id) end
      told.report(member[1], member[2], WELL[way], value, id, LOUD[way], way == 'purged')
      members[id] = nil
    end
  end
  told.go_on()
end

-- Reads all that is known of these calls, at most 1,000. True when there is something. `members`, nil = none, and `stepping`
-- are as above.
local function look_up(ids, way, members, stepping)
  if way and not WAYS[way] then error('ERR a call cannot end as ' .. way, 0) end
  if members and next(members) then tell_flows(ids, way, members, stepping) end
  none_known = #ids == 0 or nothing_known()
  if none_known then return false end
  expect('hash', CRASHES, OVERDUE)
  expect('zset', REVOKED)
  for i, packed in ipairs(redis.call('HMGET', CALLS, unpack(ids))) do
    records[ids[i]] = read_record(packed)
    expect_record(records[ids[i]])
  end
  return true
end

local function bring_version(record)
  local name = version_of(record.versioned)
  local newest = tonumber(redis.call('GET', name) or -1) or -1
  if newest < (record.version or 0) then
    redis.call('SET', name, string.format('%.0f', record.version), 'PX', record.version_ttl_ms)
  end
end

-- An attempt that was killed for its time limit is settled; the next one has its own time.
local function forget_overdue(ids)
  if #ids > 0 then redis.call('HDEL', OVERDUE, unpack(ids)) end
end

-- Watchers hear of it. It is the last entry, so no trimming reaches it.
local function end_output(id, output, way)
  local key, last = output_of(id), entry_of(output.run, output.n + 1)
  redis.pcall('XADD', key, last, 'end', way)
  redis.pcall('PEXPIRE', key, string.format('%.0f', output.ttl_ms))
  redis.call(PUBLISH, key, last .. ' ' .. way .. '\n')
end

local function give_up(id, record, now, way)
  free_slot(id, record, now)
  leave_line(id, record)
  if record.order then leave_order(id, record, now) end
  -- One that was to go with the start goes now at the latest: not every call that ends has started.
  if record.key and record.ends ~= '' then drop_marker(id, record, way) end
  if record.taken then redis.call('SREM', taken_by(record.taken[1]), id) end
  if record.versioned and way == 'succeeded' then bring_version(record) end
  if record.output then end_output(id, record.output, way) end
  if record.adds then drop_added(record, told and told.taken_in) end
end

-- These calls have ended in this way: they are known no more, and hold nothing.
local function finish(ids, way, now)
  if #ids > 0 and not none_known then
    redis.call('HDEL', CALLS, unpack(ids))
    redis.call('HDEL', CRASHES, unpack(ids))
    forget_overdue(ids)
    -- Who revoked them has what he wanted, or came too late; a later call with the same id is another one.
    redis.call('ZREM', REVOKED, unpack(ids))
    local ended = {}
    for i, id in ipairs(ids) do ended[i], records[id] = record_of(id), {} end
    for i, id in ipairs(ids) do give_up(id, ended[i], now, way) end
  end
  if told then
    if told.write() > 0 then wake() end
    count('strayed', told.strayed)
    told = nil
  end
  count(way, #ids)
end

-- What a consumer acknowledged early is lost with it: nobody will run it again, so its caller hears of it. At most 500 of
-- `some`, default: all; gives how many there were.
local function end_taken(consumer, now, some)
  local ids, members = {}, {}
  for i, id in ipairs(some or redis.call('SMEMBERS', taken_by(consumer))) do
    if i <= 500 then ids[i] = id end
  end
  for _, id in ipairs(ids) do
    local record = record_of(id)
    local taken = record.taken
    if record.flow and taken and taken[1] == consumer then members[id] = { record.flow, record.node, taken[3] } end
  end
  look_up(ids, 'lost', members)
  expect('stream', ENDED)
  local lost = {}
  for _, id in ipairs(ids) do
    local taken = record_of(id).taken
    redis.call('SREM', taken_by(consumer), id)
    if taken and taken[1] == consumer then
      if taken[3] ~= '' then publish_result(id, taken[3], taken[4]) end
      local record = record_of(id)
      if record.flow then redis.call('SET', LATE .. id, taken[2], 'PX', taken[4]) end
      -- What it has added goes with its true outcome, which may yet come.
      for i = 2, #(record.adds or {}) do redis.call('PEXPIRE', added_by(record.adds[i]), taken[4]) end
      record.adds = nil
      lost[#lost + 1] = id
    end
  end
  finish(lost, 'lost', now)
  return #lost
end
