"""The managed worker pool, the decorator that uses it, and what decides where a function runs."""
