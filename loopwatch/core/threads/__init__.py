"""The agent's own threads: how they start, sleep, and go away while the process forks."""
