"""Definition and counting of the metrics; pure."""
