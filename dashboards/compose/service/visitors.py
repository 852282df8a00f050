"""Visits services until it is ended: ``python visitors.py http://shop:8000 ...``. Standard library only."""

from __future__ import annotations

import random
import sys
import threading
import time
import urllib.error
import urllib.request

SECONDS_BETWEEN = {
    "/ping": 0.05,
    "/report": 4,
    "/crawl": 6,
    "/match": 9,
    "/login": 7,
    "/legacy": 11,
    "/convert": 17,
    "/hang": 300,
    "/price": 0.5,
    "/priced/7": 0.5,
    "/thumbnail": 2,
    "/mail": 3,
    "/crash": 120,
    "/zombie": 600,
}
"""Mean time between two visits of an address."""


def visit(address: str) -> bool:
    """Ask once; return whether there was an answer."""
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            answer.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False  # it may hang or not run yet; a visitor comes again
    return True


def visit_again_and_again(address: str, seconds: float) -> None:
    """Ask for ever."""
    while True:
        time.sleep(random.expovariate(1 / seconds))
        visit(address)


def main(services: list[str]) -> None:
    """Ask for everything, each in its own rhythm."""
    for service in services:
        for path, seconds in SECONDS_BETWEEN.items():
            visiting = threading.Thread(target=visit_again_and_again, args=(service + path, seconds), daemon=True)
            visiting.start()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
