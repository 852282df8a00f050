"""Diagnosis: from an observation to cause, culprit and remedy of a stall. Pure functions of records."""
