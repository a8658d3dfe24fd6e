-- assign: in which partition each of these queues lies; decided here, once, at the first use
-- KEYS  {namespace}, a bare tag
-- ARGV  how many partitions new queues are spread over, then numbers for them ("0 1 2": taken where fewer are known), then
--       the queues
-- out   the number of the partition of each queue, as text
-- work  one HVALS: as many fields as there are queues that were ever used
-- A new queue goes where the fewest are, the first of several; it stays there whatever else changes. One that is known, and
-- has no partition, was used when there was only one.
local PARTITIONS, QUEUES = KEYS[1] .. ':partitions', KEYS[1] .. ':queues'
-- No queue has an empty name: there stand the numbers that were taken so far.
local wanted, numbers, is_known = tonumber(ARGV[1]), {}, {}

local function know(list)
  for number in string.gmatch(list, '%d+') do
    if #numbers < wanted and not is_known[number] then
      numbers[#numbers + 1] = number
      is_known[number] = true
    end
  end
end

local stored = redis.call('HGET', PARTITIONS, '') or ''
know(stored)
know(ARGV[2])
local queues = {}
for _, number in ipairs(redis.call('HVALS', PARTITIONS)) do queues[number] = (queues[number] or 0) + 1 end
redis.call('SISMEMBER', QUEUES, '')

local answers = {}
for i = 3, #ARGV do
  local number = redis.call('HGET', PARTITIONS, ARGV[i])
  if not number then
    number = '0'
    if redis.call('SISMEMBER', QUEUES, ARGV[i]) == 0 then
      number = numbers[1]
      for _, each in ipairs(numbers) do
        if (queues[each] or 0) < (queues[number] or 0) then number = each end
      end
    end
    redis.call('HSET', PARTITIONS, ARGV[i], number)
    queues[number] = (queues[number] or 0) + 1
  end
  answers[#answers + 1] = number
end
if #numbers > select(2, string.gsub(stored, '%d+', '')) then
  redis.call('HSET', PARTITIONS, '', table.concat(numbers, ' '))
end
return answers
