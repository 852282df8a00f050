"""Sinks: emit stalls within the process and to disk (log, journal, hang file, callbacks)."""
