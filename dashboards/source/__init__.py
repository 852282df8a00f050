"""What ``dashboards/grafana`` is written from: ``python -m dashboards.source`` at the root of the repository.

Not part of an installation; needs grafana-foundation-sdk.
"""
