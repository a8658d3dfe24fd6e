-- What a run adds to the output of its call. Needs _common, _calls and _settle.
-- The record of the call has the output as far as it is known: { run, token (whose run that is), number (which one of that
-- process), n (values of all runs), base (those before this run), length, ttl_ms }.
-- A larger batch is not in its message: who hears of that reads it (bytes).
local MOST_PUSHED = 65536

-- As far as another record knew it, or nil: of another call with this id that has ended, which is deleted then.
local function left_behind(key)
  local top = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if not top or top[2][1] == 'end' then return { run = 0, n = 0 }, top ~= nil end
  local run, n = string.match(top[1], '^(%d+)-(%d+)$')
  return { run = tonumber(run), n = tonumber(n) }, false
end

-- Reads and checks; gives what then writes, which raises nothing, or nil where the run is over.
-- emitted  packed: number of the run in its process, how many values are confirmed, number of the first of these in the
--          run (from 1), most entries of the output, its ttl_ms, the values, at most 500
local function emission(id, token, emitted)
  local number, confirmed, first, length, ttl_ms, values = unpack(cmsgpack.unpack(emitted))
  local key, record, renewed = output_of(id), record_of(id), false
  expect('stream', key)
  expect('hash', CALLS)
  local was = record.output
  local same = was and was.token == token
  if same and was.number > number then return nil end
  if not (same and was.number == number) then
    local before = was
    if not before then before, renewed = left_behind(key) end
    was = { run = before.run + 1, n = before.n, base = before.n }
  end
  local known = was.n - was.base
  -- What was confirmed and is not there was lost with a server: the numbers show it. Else it is still to come.
  if first > known + 1 then
    if known >= confirmed then error('ERR what ' .. id .. ' has emitted before is not there yet', 0) end
    known = first - 1
  end
  local output = { run = was.run, token = token, number = number, base = was.base, length = length, ttl_ms = ttl_ms }
  return function()
    if renewed then redis.call('DEL', key) end
    local pushed, size = {}, 0
    for i = known - first + 2, #values do
      known = known + 1
      redis.pcall('XADD', key, entry_of(output.run, output.base + known), 'value', values[i])
      pushed[#pushed + 1], size = values[i], size + #values[i]
    end
    output.n, record.output, none_known = output.base + known, output, false
    if #pushed == 0 then return end
    redis.call('XTRIM', key, 'MAXLEN', '~', string.format('%.0f', length))
    redis.call('PEXPIRE', key, string.format('%.0f', ttl_ms))
    local head = entry_of(output.run, output.n - #pushed + 1) .. '\n'
    redis.call(PUBLISH, key, size > MOST_PUSHED and head or head .. table.concat(pushed))
  end
end

-- The same for what rides with the end of a run: nothing where the outcome of that is not ours to write.
local function last_emission(consumer, stream, entry_id, id, taken, emitted)
  local write = emitted ~= '' and is_ours(consumer, stream, entry_id, id, taken)
    and emission(id, token_of(consumer, entry_id), emitted)
  return write or function() end
end
