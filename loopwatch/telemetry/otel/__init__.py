"""Code that needs OpenTelemetry: providers, metrics, spans, log records, OTLP export."""
