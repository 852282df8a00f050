"""Where stalls go within the process and on disk: log, journal, hang file."""
