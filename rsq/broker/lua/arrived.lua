-- arrived: nothing changes but markers; did calls arrive whose replies were lost? One look for all of them
-- Bound: 5,000 entries and 32 MB, the newest first. What lies beyond, nobody can tell.
-- KEYS  T
-- ARGV  from_ms (by the server's clock; none was sent before), then for each call:
--       id, priority, unique (1 = its id is to have a marker), dedupe_key ('' = none), marker_ttl_ms
-- out   for each call: 1 it arrived | 0 it did not | -1 nobody can tell: too much has come since, or it is too long ago
-- include: _common
-- include: _ready
-- include: _calls
local from_ms, now = tonumber(ARGV[1]), now_ms()
local entries_left, bytes_left, first_page = 5000, 32 * 1024 * 1024, 16
local answers, calls, sought, wanted = {}, {}, {}, 0

local function found(call)
  answers[call.place], sought[call.id], wanted = 1, nil, wanted - 1
  -- A plain first try has set no marker; the next one with this id must find one.
  if call.unique then redis.call('SET', T .. ':dedupe:id:' .. call.id, call.id, 'PX', call.ttl_ms, 'NX') end
end

-- Gives each entry to `look`, the newest first. False where not all of it was seen.
local function walk(stream, look)
  local last, page = '+', first_page
  while wanted > 0 do
    if entries_left <= 0 or bytes_left <= 0 then return false end
    page = math.min(page, entries_left)
    local entries, bytes = redis.call('XREVRANGE', stream, last, ARGV[1], 'COUNT', page), 0
    for _, entry in ipairs(entries) do
      for _, field in ipairs(entry[2]) do bytes = bytes + #field end
      look(entry[2])
    end
    entries_left, bytes_left = entries_left - #entries, bytes_left - bytes
    if #entries < page then return true end
    last = '(' .. entries[#entries][1]
    page = math.max(1, math.min(PAGE, math.floor(1048576 * #entries / bytes)))
  end
  return true
end

for i = 2, #ARGV, 5 do
  local call = { id = ARGV[i], priority = ARGV[i + 1], unique = ARGV[i + 2] == '1', ttl_ms = ARGV[i + 4] }
  call.place = (i - 2) / 5 + 1
  calls[call.place], sought[call.id], wanted, answers[call.place] = call, call, wanted + 1, 0
  local key = ARGV[i + 3]
  -- It is delayed, taken early, done, or it set a marker; else it ended without a trace, or is in the stream still.
  if redis.call('HEXISTS', T .. ':messages', call.id) == 1
    or redis.call('EXISTS', T .. ':result:' .. call.id) > 0 or record_of(call.id).taken
    or (call.unique and redis.call('EXISTS', T .. ':dedupe:id:' .. call.id) == 1)
    or (key ~= '' and redis.call('GET', T .. ':dedupe:key:' .. key) == call.id) then
    found(call)
  end
end

local certain = walk(T .. ':ended', function(fields)
  for id in string.gmatch(fields[2], '%S+') do
    if sought[id] then found(sought[id]) end
  end
end)
if now - from_ms > repeat_window() then certain = false end
local seen = {}
for _, call in ipairs(calls) do
  local stream = stream_of(call.priority)
  if answers[call.place] == 0 and seen[stream] == nil then
    seen[stream] = walk(stream, function(fields)
      if fields[1] == 'id' and sought[fields[2]] then found(sought[fields[2]]) end
    end)
  end
end
for _, call in ipairs(calls) do
  if answers[call.place] == 0 and not (certain and seen[stream_of(call.priority)]) then answers[call.place] = -1 end
end
return answers
