"""Probes, one a kind of loop: asyncio by timing its selector, uvloop by libuv's counters, others by a heartbeat."""
