-- How an entry leaves its stream, or a token is spent. Needs _common and _calls.

-- Whether `settle` would say so. Changes nothing.
local function is_ours(consumer, stream, entry_id, id, taken)
  if taken then
    local known, token = record_of(id).taken, token_of(consumer, entry_id)
    return known ~= nil and known[2] == token or redis.call('GET', LATE .. id) == token
  end
  return #redis.call('XRANGE', stream, entry_id, entry_id) == 1
end

-- Entries of the stream that pend for this consumer, by their ids: of the oldest ones so many. To look for one in the
-- stream costs much more.
local function pending_of(consumer, stream, number)
  local found, pending = {}, redis.pcall('XPENDING', stream, GROUP, '-', '+', number, consumer)
  for _, row in ipairs(pending.err and {} or pending) do found[row[1]] = true end
  return found
end

-- True when the outcome is ours to write: the entry left the stream by this call, or the call was acknowledged early and
-- its token is still there. False for what was settled before: a commit that is repeated after a lost reply.
local function settle(consumer, stream, entry_id, id, taken)
  if taken then
    local record = record_of(id)
    local known, token = record.taken, token_of(consumer, entry_id)
    if not known or known[2] ~= token then
      return redis.pcall('GET', LATE .. id) == token and redis.call('DEL', LATE .. id) == 1
    end
    redis.call('SREM', taken_by(known[1]), id)
    record.taken, record.flow, record.node = nil, nil, nil
    return true
  end
  redis.call('XACK', stream, GROUP, entry_id)
  return redis.call('XDEL', stream, entry_id) == 1
end
