"""The version of the package, where everything that says it reads it."""

__version__ = "0.1.0"
