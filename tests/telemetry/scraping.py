"""Scrapes processes as Prometheus does."""

from __future__ import annotations

import collections
import json
import random
import socket
import time
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

T = TypeVar("T")

OPENMETRICS = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
"""What Prometheus 2.42 accepts."""
DEADLINE = 30.0
"""Seconds; generous: a test that reaches it has found another problem."""


def fetch(url: str, **headers: str) -> tuple[str, bytes]:
    """Return content type and body of the resource at ``url``."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        return answer.headers["Content-Type"], answer.read()


def scraped(url: str, accept: str = "text/plain") -> list[Sample]:
    """Return the samples that are exposed at ``url``."""
    kind, body = fetch(url, Accept=accept)
    parse: Any = text_string_to_metric_families
    if kind.startswith("application/openmetrics-text"):
        parse = openmetrics.text_string_to_metric_families
    return [sample for family in parse(body.decode()) for sample in family.samples]


def one(samples: list[Sample], name: str, **labels: str) -> Sample:
    """Return the only sample of that name with those labels."""
    found = [each for each in samples if each.name == name and labels.items() <= each.labels.items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def target_info(url: str) -> dict[str, str]:
    """Return the resource attributes that the process at ``url`` exposes."""
    return dict(one(scraped(url), "target_info").labels)


def targets(url: str) -> dict[str, dict[str, str]]:
    """Return the answer of ``/targets``: labels by address."""
    body = json.loads(fetch(url.replace("/metrics", "/targets"))[1])
    return {each["targets"][0]: each["labels"] for each in body}


def until(found: Callable[[], T], seconds: float = DEADLINE) -> T:
    """Return what ``found`` returns once it is true; until then it may fail to connect."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = found()
        except OSError as exc:
            assert time.monotonic() < deadline, exc
        else:
            if value:
                return value
            assert time.monotonic() < deadline, value
        time.sleep(0.02)


def free_range(count: int = 6) -> int:
    """Return the first of ``count`` consecutive free ports that no concurrent test process is given.

    Ranges are held by names in the abstract namespace, which belongs to the same network namespace as the ports
    (unix(7)): another suite on this machine, of the same or of another Python, sees them. The last few are held.
    """
    for first in random.sample(range(21000, 31800, 67), 100):
        claim, held = socket.socket(socket.AF_UNIX), [socket.socket()]
        try:
            claim.bind(f"\0loopwatch.tests.ports.{first}")
            for port in range(first, first + count):
                held.append(socket.socket())
                held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held[-1].bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        finally:
            for each in held:
                each.close()
        _claims.append(claim)
        _claims.popleft().close()
        return first
    raise AssertionError("no ports are free")


CLAIMS = 12
"""Ranges that one test process holds at most."""
_claims = collections.deque(socket.socket() for _ in range(CLAIMS))  # from the start on: tests count descriptors
