"""Runs decorated and flagged functions off the loop."""
