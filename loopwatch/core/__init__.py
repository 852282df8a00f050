"""What it takes to be a guest in somebody's process. Imports nothing of the rest of the package."""
