"""Exports what was measured: metrics, OpenTelemetry, the endpoint for Prometheus."""
