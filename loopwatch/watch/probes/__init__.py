"""How each kind of loop is read: asyncio by timing its selector, uvloop by libuv's counters, others by a heartbeat."""
