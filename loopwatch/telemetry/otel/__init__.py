"""Everything that needs OpenTelemetry."""
