-- trim: entries of a stream of others -> gone, where each group that counts is done with them; a bounded step
-- KEYS  the bare tag of the stream
-- ARGV  stream, trimmer, lease_ms (for so long nobody else trims it; 0 = it trims no more),
--       length (so many entries stay; '' = by age), age_ms (entries stay for so long; '' = by length),
--       silence_ms (a group counts no more that has not moved for so long while it had something to read; '' = each counts),
--       hard (1 = what is beyond goes, read or not), alone (1 = the groups that follow count, and no others), then groups that
--       count though they are not there, at most 1,000: then nothing goes
-- out   'other', ms, after which to ask again | 'you', entries that went, how many of them somebody had not read or not
--       acknowledged, whether more can go at once (0 | 1), group that holds back what is beyond ('' = none), why ('missing',
--       'unread' or 'pending'), groups that count no more
-- work  STEP entries, without their bodies; PAGE entries with them; all groups of the stream, at most GROUPS
local stream, trimmer, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local length, age_ms, silence_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local hard, alone, FIRST = ARGV[7] == '1', ARGV[8] == '1', 9
local about, lease = KEYS[1] .. ':rsq:stream:' .. stream, KEYS[1] .. ':rsq:trimmer:' .. stream
local STEP, PAGE, GROUPS, DAY_S, KEPT_MS = 10000, 100, 1000, 86400, 30 * 86400000
local LAST = '18446744073709551615-18446744073709551615'

local holder = redis.call('GET', lease)
if holder and holder ~= trimmer then return { 'other', math.max(0, redis.call('PTTL', lease)) } end
redis.call('HLEN', about)
local held = redis.call('XLEN', stream)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function number_before(a, b) return #a < #b or #a == #b and a < b end

-- Ids are compared as text: they are larger than a number can be.
local function before(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)%-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)%-(%d+)$')
  return number_before(a_ms, b_ms) or a_ms == b_ms and number_before(a_seq, b_seq)
end

-- The id behind this one; or this one, which costs one entry more.
local function behind(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return #seq < 16 and ms .. '-' .. string.format('%.0f', seq + 1) or id
end

local function pairs_of(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local delivered, names, last = {}, {}, '0-0'
if redis.call('EXISTS', stream) == 1 then
  last = pairs_of(redis.call('XINFO', 'STREAM', stream))['last-generated-id']
  for i, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    if i > GROUPS then error('ERR more than ' .. GROUPS .. ' groups read stream ' .. stream, 0) end
    local info = pairs_of(group)
    delivered[info.name] = info['last-delivered-id']
    if not alone then names[#names + 1] = info.name end
  end
end
for i = FIRST, #ARGV do
  if alone or not delivered[ARGV[i]] then names[#names + 1] = ARGV[i] end
end

-- The first entry that this group needs, and why.
local function needs(group)
  local from, why = delivered[group], 'unread'
  if not from then return '0-0', 'missing' end
  from = behind(from)
  local pending = redis.call('XPENDING', stream, group, '-', '+', 1)[1]
  if pending and before(pending[1], from) then from, why = pending[1], 'pending' end
  -- What rsq has read for it; unless it does so no more, and others go on with the group.
  local read, at_s = string.match(redis.call('HGET', about, 'read:' .. group) or '', '^(%d+%-%d+) (%d+)$')
  if read and time[1] - at_s < DAY_S and before(behind(read), from) then from, why = behind(read), 'unread' end
  return from, why
end

-- Whether a group has not moved for too long, with something to read. What is noted of it goes into `notes`.
local notes, silent = {}, {}
local function is_silent(group, from)
  if not silence_ms then return false end
  local seen, since = string.match(redis.call('HGET', about, 'seen:' .. group) or '', '^(%S+) (%d+)$')
  if seen == from and not before(last, from) then
    if now - since <= silence_ms then return false end
    silent[#silent + 1] = group
    return true
  end
  notes[#notes + 1] = 'seen:' .. group
  notes[#notes + 1] = from .. ' ' .. string.format('%.0f', now)
  return false
end

local floor, who, why = LAST, '', ''
for _, group in ipairs(names) do
  local from, because = needs(group)
  if not is_silent(group, from) and before(from, floor) then floor, who, why = from, group, because end
end

-- A server at maxmemory refuses a script whose first write needs memory; this one makes room.
redis.call('HDEL', about, '')

local function trim(...) return redis.call('XTRIM', stream, ...) end

-- All below this id: whole blocks of the server, and once there is none, what is left of it in the first one.
local function trim_to(id)
  local gone = trim('MINID', '~', id, 'LIMIT', STEP)
  return gone > 0 and gone or trim('MINID', '=', id)
end

local gone, dropped, beyond = 0, 0, false
if length and held > length then
  -- The limit keeps it from getting shorter than it is to be.
  gone = trim('MINID', '~', floor, 'LIMIT', math.min(STEP, held - length))
  if gone == 0 then
    -- What is not whole blocks may stay, where that is all there is.
    local read = floor == '0-0' and 0 or #redis.call('XRANGE', stream, '-', '(' .. floor, 'COUNT', PAGE)
    beyond = read < math.min(PAGE, held - length)
    if hard and beyond then
      gone = trim('MAXLEN', '~', length, 'LIMIT', STEP)
      dropped = math.max(0, gone - read)
    end
  end
elseif age_ms and held > 0 then
  local young = string.format('%.0f-0', math.max(0, now - age_ms))
  gone = trim_to(before(floor, young) and floor or young)
  if gone == 0 and before(floor, young) then
    beyond = #redis.call('XRANGE', stream, '-', '(' .. young, 'COUNT', 1) > 0
    if hard and beyond then
      gone = trim_to(young)
      dropped = gone
    end
  end
end

if lease_ms > 0 then redis.call('SET', lease, trimmer, 'PX', lease_ms) else redis.call('DEL', lease) end
if #notes > 0 then redis.call('HSET', about, unpack(notes)) end
if gone > 0 then redis.call('HINCRBY', about, 'trimmed', gone) end
if dropped > 0 then redis.call('HINCRBY', about, 'dropped', dropped) end
if beyond then redis.call('HSET', about, 'held', why .. ' ' .. who) elseif gone == 0 then redis.call('HDEL', about, 'held') end
redis.call('PEXPIRE', about, string.format('%.0f', KEPT_MS))
return { 'you', gone, dropped, gone * 2 >= STEP and 1 or 0, beyond and who or '', beyond and why or '', silent }
