"""What the agent's configuration says about offloading; light, so that it can be set before anything is offloaded."""

from __future__ import annotations

workers: int | None = None
"""Worker processes of the default pool, None for as many as processors may be used; for the next pool that is made."""
offload_to: str = "process"
"""Where a function goes that was decorated without saying."""
