"""Makes docs/report.png, the picture in the README: the HTML report of a real run of examples/troubled_service.py.

    python benchmarks/picture.py           # needs chromium; takes half a minute

Nothing in it is drawn by hand: the service runs, troubles are switched on one after the other, loopwatch keeps the
journal, ``loopwatch report --html`` makes the page, and a browser without a window takes the picture. Only the
directory of the service is shown as /srv/shop.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLAN = (
    ("sleep", 4.0),
    ("dump,python", 5.0),
    ("storm", 3.0),
    ("hang", 3.5),
    ("garbage", 3.0),
    ("sleep,storm", 3.0),
)
"""Troubles, and their durations in seconds."""


def run(folder: Path) -> None:
    """Run the service with a journal in ``folder``, troubles after the plan."""
    command = [sys.executable, "troubled_service.py", "--port", "0"]
    settings = {"LOOPWATCH_JOURNAL": str(folder / "stalls.jsonl"), "LOOPWATCH_THRESHOLD": "0.05", "TROUBLE_HANG": "3"}
    settings["LOOPWATCH_CPU_BUDGET"] = "0.1"  # a service in trouble all the time needs more than one that is well
    with subprocess.Popen(
        command, cwd=ROOT / "examples", env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        url = service.stdout.readline().strip()
        for names, seconds in PLAN:
            _post(f"{url}/on/{names}")
            time.sleep(seconds)
            _post(f"{url}/off/all")
            time.sleep(0.5)
        service.terminate()


def _post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=60):
        pass


def shoot(page: Path, picture: Path, width: int, height: int) -> None:
    """Take a picture of the top of a page."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("needs chromium: apt-get install --no-install-recommends chromium")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--hide-scrollbars", f"--window-size={width},{height}", f"--user-data-dir={page.parent / 'profile'}"]
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True, timeout=60)


def main() -> None:
    """Run, report, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "report.png")
    parser.add_argument("--size", default="1280x1100", help="in pixels")
    given = parser.parse_args()
    size = re.fullmatch(r"(\d+)x(\d+)", given.size)
    if size is None:
        parser.error(f"--size {given.size}: must be WIDTHxHEIGHT, such as 1280x1100")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder)
        page = folder / "report.html"
        subprocess.run([sys.executable, "-m", "loopwatch", "report", folder, "--html", page], check=True)
        page.write_text(page.read_text(encoding="utf-8").replace(str(ROOT / "examples"), "/srv/shop"), encoding="utf-8")
        shoot(page, given.to.absolute(), int(size[1]), int(size[2]))
    print(f"{given.to}: {given.to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
