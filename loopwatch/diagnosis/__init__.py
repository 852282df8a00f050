"""From what was seen to what is said: cause, culprit and remedy. Pure functions of records."""
