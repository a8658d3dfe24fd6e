-- publish: events -> a stream that others read, each id once; at most 1,000
-- KEYS  the bare tag of the stream
-- ARGV  stream, ttl_ms (how long ids are remembered), then for each event: its id ('' = none), how many names and values
--       follow, and these
-- out   for each event its entry id; with '=' before it: an event with this id was there
local stream, ttl_ms = ARGV[1], ARGV[2]
local answers, events, twins = {}, {}, {}

local function marker_of(id) return KEYS[1] .. ':rsq:published:' .. stream .. ' ' .. id end

redis.call('XLEN', stream)
local i = 3
while i <= #ARGV do
  local id, size = ARGV[i], tonumber(ARGV[i + 1])
  local event = { id = id, first = i + 2, last = i + 1 + size }
  if id ~= '' then
    event.before = redis.call('GET', marker_of(id))
    event.twin = twins[id]
    twins[id] = twins[id] or #events + 1
  end
  events[#events + 1] = event
  i = event.last + 1
end

for place, event in ipairs(events) do
  local before = event.before or event.twin and string.gsub(answers[event.twin], '^=', '')
  if before then
    answers[place] = '=' .. before
  else
    answers[place] = redis.call('XADD', stream, '*', unpack(ARGV, event.first, event.last))
    if event.id ~= '' then redis.call('SET', marker_of(event.id), answers[place], 'PX', ttl_ms) end
  end
end
return answers
