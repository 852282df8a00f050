"""What makes the dashboards is imported from the root of the repository, as it is not installed."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "cli")]
