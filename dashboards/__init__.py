"""Dashboards, rules and a compose file: data, which ``loopwatch dashboards export`` writes out."""
