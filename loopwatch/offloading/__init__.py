"""Offloading: runs decorated and flagged functions off the event loop."""
