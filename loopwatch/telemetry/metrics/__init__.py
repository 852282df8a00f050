"""What the metrics are and how they are counted; pure."""
