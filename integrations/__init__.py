"""Integrations with frameworks, shipped as ``loopwatch.integrations``; they use public names of loopwatch only."""
