-- What a call leaves behind when it has ended, and whether anything is known of calls beyond their entries. Needs _common.
local CRASHES, OVERDUE, ENDED = T .. ':crashes', T .. ':overdue', T .. ':ended'

-- True where no call of this queue has rules, has crashed, or is revoked: then their entries are all there is.
local function nothing_known()
  return redis.call('EXISTS', T .. ':calls', CRASHES, OVERDUE, REVOKED) == 0
end

-- revoked  it was taken back: then its flow may have told of it already, as that was cancelled
local function publish_result(id, result, ttl_ms, revoked)
  local key = T .. ':result:' .. id
  if revoked and redis.call('EXISTS', key) == 1 then return end
  redis.call('SET', key, result, 'PX', ttl_ms)
  redis.call(PUBLISH, key, result)
end

-- A call whose result is not kept, or not for long, leaves nothing by which a repeated enqueue could know it. So the ids of
-- such calls are remembered that ended within the repeat window after their enqueue; later ones cannot be repeated any more.
local lasting
local function leaves_no_trace(entry_id, result, ttl_ms, now)
  if result ~= '' and (ttl_ms == lasting or tonumber(ttl_ms) >= LONGEST_REPEAT_WINDOW_MS) then
    lasting = ttl_ms  -- most have the same: to read the number costs much more than this
    return false
  end
  if result ~= '' and tonumber(ttl_ms) >= repeat_window() then return false end
  return tonumber(string.match(entry_id, '^%d+') or 0) > now - repeat_window()
end

local function remember_ended(ids, now)
  if #ids == 0 then return end
  redis.call('XADD', ENDED, 'MINID', '~', now - repeat_window(), '*', 'ids', table.concat(ids, ' '))
  redis.call('PEXPIRE', ENDED, repeat_window())
end
