"""Exports measurements: metrics, OpenTelemetry spans and log records, the Prometheus endpoint."""
