-- Whether a queue takes one more call, and where it goes. Needs _common and _ready.

-- How many messages it holds, where that is `max_length` (0 = no bound) or more, else nil.
local function full(max_length)
  if max_length == 0 then return end
  local held = redis.call('ZCARD', T .. ':delayed')
  for p = 0, 9 do held = held + redis.call('XLEN', stream_of(p)) end
  if held < max_length then return end
  for _, entry_id in ipairs(redis.call('SRANDMEMBER', WAKES, PAGE)) do
    if #redis.call('XRANGE', T .. ':stream', entry_id, entry_id) == 1 then held = held - 1 end
  end
  if held >= max_length then return held end
end

-- Whether people have closed the queue: `rsq pause --refuse`.
local function refuses()
  return redis.call('GET', T .. ':paused') == 'refuse'
end

local function place(now, due, priority, id, task, body, meta)
  if due > now then
    add_delayed(now, due, priority, id, task, body, meta)
  elseif add_ready(priority, id, task, body, meta) then
    wake()
  end
end
