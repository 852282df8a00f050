"""The resource of a process: standard variables win, the program's name is the default, and forked children differ."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest

import loopwatch
from loopwatch.telemetry import resource
from loopwatch.telemetry.resource import attributes, given_attributes, program_name


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/srv/shop/main.py", "--port", "1"], "main"),
        (["/usr/lib/python3/site-packages/shop/__main__.py"], "shop"),
        (["/venv/bin/shop-server"], "shop-server"),
        (["/venv/bin/uvicorn", "--workers", "2", "shop.web:app"], "shop.web"),
        (["/usr/lib/uvicorn/__main__.py", "shop.web:create_app", "--factory"], "shop.web"),
        (["gunicorn", "-b", "127.0.0.1:8000", "-b", "unix:/run/x.sock", "web:build()"], "web"),
        (["gunicorn", "-c", "conf.py"], "gunicorn"),
        (["/venv/bin/opentelemetry-instrument", "gunicorn", "web:app"], "web"),
        (["-c"], "python"),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_default_service_name(argv: list[str], name: str) -> None:
    """The service is named after the application that a server runs, the script or the package."""
    assert program_name(argv) == name


def test_variables_take_precedence() -> None:
    """OTEL_SERVICE_NAME takes precedence over OTEL_RESOURCE_ATTRIBUTES, and that over detected attributes."""
    text = "service.name=b,deployment.environment.name=prod, team = a%2Cb ,nonsense,=x,service.version=1.2"
    found = attributes({"OTEL_RESOURCE_ATTRIBUTES": text})
    assert found["service.name"] == "b"
    assert (found["deployment.environment.name"], found["team"], found["service.version"]) == ("prod", "a,b", "1.2")
    assert "nonsense" not in found
    both = attributes({"OTEL_RESOURCE_ATTRIBUTES": text, "OTEL_SERVICE_NAME": "a"})
    assert both["service.name"] == "a"
    assert given_attributes("") == {}


def test_attributes_of_this_process() -> None:
    """Process, parent, host and version are those of this process; its instance id stays the same while it lives."""
    found = attributes({})
    assert found["process.pid"] == os.getpid()
    assert found["process.parent_pid"] == os.getppid()
    assert found["host.name"] == socket.gethostname()
    assert (found["telemetry.distro.name"], found["telemetry.distro.version"]) == ("loopwatch", loopwatch.__version__)
    assert attributes({})["service.instance.id"] == found["service.instance.id"]
    assert not {"loopwatch.worker.index", "loopwatch.worker.name"} & found.keys()
    assert not {"process.command", "process.command_line", "process.command_args"} & found.keys()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_another_instance() -> None:
    """A child has its own pid and instance id; an id that the environment gives to all gets the pid as suffix."""
    given = {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod-7"}
    before = attributes({})["service.instance.id"]
    assert attributes(given)["service.instance.id"] == "pod-7"
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        own = attributes({})
        reported = (own["service.instance.id"], own["process.pid"], attributes(given)["service.instance.id"])
        os.write(write, "\n".join(map(str, reported)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with open(read) as output:  # noqa: PTH123 - a descriptor
        instance, process, of_pod = output.read().split("\n")
    assert instance != before
    assert process == str(pid)
    assert of_pod == f"pod-7/{pid}"
    assert attributes({})["service.instance.id"] == before
    assert resource.SERVERS


WORKERS = """
    import os, sys
    from loopwatch.telemetry.resource import worker_index

    def worker():
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(writing, str(worker_index()).encode())
            sys.stdin.read()
            os._exit(0)
        os.close(writing)
        return pid, os.read(reading, 9).decode()

    def killed(pid):
        os.kill(pid, 9)
        os.waitpid(pid, 0)

    workers = [worker() for _ in range(3)]
    killed(workers[1][0])
    again = worker()
    print(worker_index(), *(index for _, index in workers), again[1])
    for pid in (workers[0][0], workers[2][0], again[0]):
        killed(pid)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_workers_are_numbered() -> None:
    """Forked children are numbered from 0, a replacement gets the number of the one before, and their parent has none;
    the same holds for two parents at a time."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WORKERS)]
    parents = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in parents:
        assert each.stdout is not None
        assert each.stdin is not None
        with each.stdout, each.stdin:
            assert each.stdout.read().split() == ["None", "0", "1", "2", "1"]
        assert each.wait() == 0
