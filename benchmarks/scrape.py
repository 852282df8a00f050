"""Prints how late a loop is while Prometheus scrapes its process: the scrape competes for the GIL.

    python benchmarks/scrape.py                       # half a minute
    python benchmarks/scrape.py --seconds 5

As ``benchmarks/export.py``: a ticker runs on an asyncio loop every millisecond; another process scrapes a port of this
one four times a second. The table shows how late the ticks during a scrape were, and how late the worst one of each
scrape was. The control has spans of the same length, in which nothing is done.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

from export import INTERVAL, WARM_UP, account, idle_spans, summary, tick

from loopwatch.core.faults import Faults
from loopwatch.telemetry.prometheus.endpoint import Scrape
from loopwatch.telemetry.prometheus.http_server import Request, Response

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
ROWS = {
    "no scrape": ("typical", "text/plain", 0),
    "typical": ("typical", OPENMETRICS, 1),
    "full": ("full", OPENMETRICS, 1),
    "full, plain text": ("full", "text/plain", 1),
    "full, 8 scrapers at a time": ("full", OPENMETRICS, 8),
}
"""Size of the metrics, accepted format, and number of scrapers, of each row."""


def measure(size: str, accept: str, scrapers: int, seconds: float) -> dict[str, Any]:
    """Return statistics of the ticks during scrapes."""
    gc.disable()  # a full collection takes longer than a scrape
    spans: list[tuple[float, float]] = []
    sizes: list[int] = []
    ended = threading.Event()
    scrape = Scrape("127.0.0.1", 0, account(size), Faults())
    get = scrape._page.get

    def timed(request: Request) -> Response:
        began = time.monotonic()
        response = get(request)
        spans.append((began, time.monotonic()))
        sizes.append(len(response.body))
        return response

    scrape._page.get = timed  # type: ignore[method-assign]
    scrape.open()
    scrape.start()
    command = [sys.executable, __file__, "--scraper", scrape.url, accept, str(scrapers)]
    client = subprocess.Popen(command) if scrapers else None
    if client is None:
        threading.Thread(target=idle_spans, args=(spans, ended), daemon=True).start()
    try:
        ticks = asyncio.run(tick(seconds))
    finally:
        ended.set()
        if client is not None:
            client.kill()
            client.wait()
    found = summary(ticks, spans[WARM_UP:])
    cpu = scrape.cpu * 1000 / max(len(spans), 1)
    scrape.close()
    return found | {"cpu": cpu, "bytes": max(sizes, default=0)}


def scrape_for_ever(url: str, accept: str, scrapers: int) -> None:
    """Scrape as Prometheus does."""
    headers = {"Accept": accept, "Accept-Encoding": "gzip"}

    def once() -> None:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            answer.read()

    while True:
        threads = [threading.Thread(target=once) for _ in range(scrapers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(INTERVAL)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each row")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--scraper", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scraper:
        url, accept, scrapers = options.scraper
        scrape_for_ever(url, accept, int(scrapers))
    elif options.child:
        print(json.dumps(measure(*ROWS[options.child], options.seconds)))
    else:
        print("| | answers | length ms | CPU ms | bytes | ticks p50 ms | p90 | worst of a scrape p50 | p90 |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for name in ROWS:
            command = [sys.executable, __file__, "--child", name, "--seconds", str(options.seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            row = json.loads(done.stdout.splitlines()[-1])
            cells = " | ".join(f"{row[key]:.2f}" for key in ("p50", "p90", "worst50", "worst90"))
            print(
                f"| {name} | {row['exports']} | {row['length']:.1f} | {row['cpu']:.1f} | {row['bytes']} | {cells} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
