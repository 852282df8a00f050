"""Report: reads journals and reports their stalls as text, HTML or JSON."""
