"""One module for each kind of executor: how it is hooked, and how its statistics are read."""
