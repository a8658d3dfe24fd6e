-- Whether a queue takes more calls. Needs _common and _ready.

-- How many messages it holds, where with `more` (1, unless it is told) that is above `max_length` (0 = no bound), else nil.
local function full(max_length, more, queue)
  if max_length == 0 then return end
  local held, bound = redis.call('ZCARD', (queue or T) .. ':delayed'), max_length - (more or 1)
  for p = 0, 9 do held = held + redis.call('XLEN', stream_of(p, queue)) end
  if held <= bound then return end
  for _, entry_id in ipairs(redis.call('SRANDMEMBER', (queue or T) .. ':wakes', PAGE)) do
    if #redis.call('XRANGE', stream_of(0, queue), entry_id, entry_id) == 1 then held = held - 1 end
  end
  if held > bound then return held end
end
