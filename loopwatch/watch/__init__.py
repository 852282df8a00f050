"""Watches event loops: when to look, what to read, the record of what was seen."""
