"""Watches event loops: schedules ticks, reads probes, samples blocked threads, records each block."""
