"""Health of the executors and child processes around the loop."""
