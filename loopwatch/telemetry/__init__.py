"""How loopwatch tells what it saw: journal, reports, log lines, OpenTelemetry."""
