-- enqueue: -> ready or delayed, for all but the plainest calls (those are one XADD)
-- KEYS  T
-- ARGV  id, task, body, meta, priority,
--       delay_ms ('' = none), eta_ms ('' = none; since the epoch),
--       max_length (0 = no bound), unique (1 = this id runs once), dedupe_key ('' = none), marker_ttl_ms,
--       since_ms ('' = first try, else ms since the first try whose reply was lost)
-- out   'accepted', id | 'duplicate', id that won | 'full', messages held
-- include: _common
-- include: _ready
-- include: _admit
local id, task, body, meta, priority = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local delay_ms, eta_ms, max_length = ARGV[6], ARGV[7], tonumber(ARGV[8])
local unique, dedupe_key, marker_ttl_ms, since_ms = ARGV[9] == '1', ARGV[10], ARGV[11], ARGV[12]
local id_marker, key_marker = T .. ':dedupe:id:' .. id, T .. ':dedupe:key:' .. dedupe_key
local now, repeated = now_ms(), since_ms ~= ''

-- Did the first try arrive? It is delayed, taken early, done, ended without a trace, or still in the stream; the last two
-- behind the time it was sent. `since_ms` was true when this call was sent, which may have been under way for long.
local function arrived()
  if redis.call('HEXISTS', T .. ':messages', id) == 1 then return true end
  if redis.call('EXISTS', T .. ':taken:' .. id, T .. ':result:' .. id) > 0 then return true end
  local from = tostring(now - tonumber(since_ms) - REPEAT_WINDOW_MS)
  for _, entry in ipairs(redis.call('XRANGE', T .. ':ended', from, '+')) do
    if string.find(' ' .. entry[2][2] .. ' ', ' ' .. id .. ' ', 1, true) then return true end
  end
  local stream = stream_of(priority)
  while true do
    local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', PAGE)
    for _, entry in ipairs(entries) do
      if entry[2][1] == 'id' and entry[2][2] == id then return true end
    end
    if #entries < PAGE then return false end
    from = '(' .. entries[#entries][1]
  end
end

if repeated and arrived() then
  -- A plain first try has set no marker; the next one with this id must find one.
  if unique then redis.call('SET', id_marker, id, 'PX', marker_ttl_ms, 'NX') end
  return { 'accepted', id }
end

if dedupe_key ~= '' then
  local winner = redis.call('GET', key_marker)
  if winner then return { repeated and winner == id and 'accepted' or 'duplicate', winner } end
end
if unique and redis.call('EXISTS', id_marker) == 1 then return { repeated and 'accepted' or 'duplicate', id } end
local held = full(max_length)
if held then return { 'full', held } end

if dedupe_key ~= '' then redis.call('SET', key_marker, id, 'PX', marker_ttl_ms) end
if unique then
  redis.call('SET', id_marker, id, 'PX', marker_ttl_ms)
  -- The marker of an earlier call with this id is gone; its result is not an answer to this one.
  redis.call('DEL', T .. ':result:' .. id)
end
local due = eta_ms ~= '' and tonumber(eta_ms) or (delay_ms ~= '' and now + tonumber(delay_ms)) or now
place(now, due, priority, id, task, body, meta)
return { 'accepted', id }
