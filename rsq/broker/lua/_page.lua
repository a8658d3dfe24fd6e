-- A page of the nodes of a flow that is started, as a script is given it: rows from `first` on. Needs _flow; rows are at
-- hand.
local function page_from(id, first)
  local self, rows, fields = { key = string.match(T, '^{[^}]*}') .. '::flow:' .. id }, {}, {}
  local stored = redis.call('HLEN', self.key)
  for i = first, #ARGV, WIDTH do
    rows[tonumber(ARGV[i + NUMBER])] = ARGV[i + ROW]
    fields[#fields + 1], fields[#fields + 2] = ARGV[i + NUMBER], ARGV[i + ROW]
  end

  -- The flow has been started.
  function self.stands() return stored > 0 and redis.call('HEXISTS', self.key, 'head') == 1 end

  function self.store() set_fields(self.key, fields, #fields) end

  -- Whether pages that came before this one, the last, are gone.
  function self.lacks(head)
    local new = #fields / 2
    for i = 1, stored > 0 and #fields or 0, 2 do new = new - redis.call('HEXISTS', self.key, fields[i]) end
    return stored + new < head.size
  end

  function self.drop() redis.call('UNLINK', self.key) end

  -- Before the first write.
  function self.start(told, head) told.start(id, head, rows) end

  return self
end
