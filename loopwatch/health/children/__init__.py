"""Child processes that belong to no executor."""
