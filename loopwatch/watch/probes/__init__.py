"""Probes, one a kind of loop: asyncio by timing its selector, uvloop by libuv's counters, others by a heartbeat.

A new probe is one module here, chosen in :mod:`loopwatch.watch.probes.choice`. A loop that is compiled, or that does
not call ``asyncio._set_running_loop``, is also named in ``watch.discovery``, ``core.deferred`` and
``health.default_executors``.
"""
