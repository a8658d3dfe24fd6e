-- Flows: what follows when a node of one ends, see docs/protocol.md. Needs _common, _ready and _calls.
-- First everything is read and worked out in memory: `start`, `report`, `cancel` and the like say what happens, and
-- `go_on` what follows from it, up to one budget; what is beyond is left to `go_on.lua`. Then come the script's own
-- writes, then `write`, which raises nothing. A flow that cannot be read fails by itself, and holds nobody else up.
-- Work: 200 nodes that are released, ended or counted down, and 512 KiB of what they bring, or one that is larger.

local JOIN, CALL, ERRBACK = 0, 1, 2
local SKIP, CONTINUE = 1, 2
-- How it stands with a node. AGAIN: it is bad, and runs again.
local OPEN, OK, BAD, AGAIN = 0, 1, 2, 3
-- Before a value that is a failure: the packed result of the call that failed, or the number of the node that did.
local FAILED = '\193'

-- So many fields and values of a hash.
local function set_fields(key, fields, number)
  for i = 1, number, 2000 do redis.call('HSET', key, unpack(fields, i, math.min(number, i + 1999))) end
end

-- All that is below is made only by scripts that have to do with a flow.
-- stepping  what was seen to in short, see _steps, or nil: its budget is used up, and of a flow that comes up here, too, all
--           is seen to here
local function flows(now, stepping)
-- include: _flow_layout
-- So many flows stand in each other that one within tells those around of a death.
local MOST_ABOVE = 100
-- For so long it is remembered that a flow was cancelled of whose calls nobody knows where they are.
local FORGET_MS = 86400000
local SKIPPED = cmsgpack.pack({ 'REVOKED', 1, 0, 'upstream' })
local REVOKED_RESULT = cmsgpack.pack({ 'REVOKED', 1, 0, 'revoked' })
local P = string.match(T, '^{[^}]*}')
local FLOWS, TODO = P .. '::flows', P .. '::todo'
local nodes_left, bytes_left = MOST_NODES, MOST_BYTES
if stepping then nodes_left, bytes_left = stepping.left() end
-- taken_in: names of what calls have added that flows have taken in, in this script.
local self = { strayed = 0, taken_in = {} }

function self.used_up() return nodes_left <= 0 or bytes_left <= 0 end

-- include: _flow_stored
-- include: _flow_message
-- include: _flow_nodes
-- include: _flow_follow
-- include: _flow_said
-- include: _flow_write

return self
end
