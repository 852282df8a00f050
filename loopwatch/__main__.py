"""``python -m loopwatch`` is the command ``loopwatch``."""

from __future__ import annotations

import sys

from loopwatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
