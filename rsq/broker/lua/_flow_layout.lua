-- How a flow is stored, see docs/protocol.md, and the bounds of what one script does. Needs nothing.

local MOST_NODES, MOST_BYTES, INLINE_BYTES, PROLONG_MS = 200, 524288, 65536, 60000
-- What the field `head` of a flow holds, and behind that what never changes.
local COUNTS, FIXED = '>BBI4I4i4I4I4i4i4Bdd', '>ddddi4i4i4i4I4'
-- What the field of a node holds: its edges, its names, and as long as it waits its call.
local EDGES, WAITS_AT, BASE_AT, NAMES_AT = '>BBBBBI4i4I4I4I4', 6, 14, 26
local NAMES, CALL_OF = '>I2c0I2c0I2c0I2c0', '>Bi4I4c0I4c0I4c0'

-- Numbers are made into texts here, since a server does so at ten times the cost.
local function name_of(n) return string.format('%d', n) end
