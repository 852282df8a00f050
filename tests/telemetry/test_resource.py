"""What a process says of itself: the standard variables win, the program's name stands in, forks are told apart."""

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
def test_a_program_is_called_after_what_was_started(argv: list[str], name: str) -> None:
    """The service is the application, the script or the package; of a server, what it serves."""
    assert program_name(argv) == name


def test_variables_win() -> None:
    """OTEL_SERVICE_NAME goes before OTEL_RESOURCE_ATTRIBUTES, and that before what was found; each pair arrives."""
    text = "service.name=b,deployment.environment.name=prod, team = a%2Cb ,nonsense,=x,service.version=1.2"
    said = attributes({"OTEL_RESOURCE_ATTRIBUTES": text})
    assert said["service.name"] == "b"
    assert (said["deployment.environment.name"], said["team"], said["service.version"]) == ("prod", "a,b", "1.2")
    assert "nonsense" not in said
    both = attributes({"OTEL_RESOURCE_ATTRIBUTES": text, "OTEL_SERVICE_NAME": "a"})
    assert both["service.name"] == "a"
    assert given_attributes("") == {}


def test_this_process() -> None:
    """Process, parent, host and version are those of this process; its id stays the same while it lives."""
    said = attributes({})
    assert said["process.pid"] == os.getpid()
    assert said["process.parent_pid"] == os.getppid()
    assert said["host.name"] == socket.gethostname()
    assert (said["telemetry.distro.name"], said["telemetry.distro.version"]) == ("loopwatch", loopwatch.__version__)
    assert attributes({})["service.instance.id"] == said["service.instance.id"]
    assert not {"loopwatch.worker.index", "loopwatch.worker.name"} & said.keys()
    assert not {"process.command", "process.command_line", "process.command_args"} & said.keys()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_another_instance() -> None:
    """Its id and its pid are others; an id that the environment gives to all is told apart by the pid."""
    given = {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod-7"}
    before = attributes({})["service.instance.id"]
    assert attributes(given)["service.instance.id"] == "pod-7"
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        own = attributes({})
        told = (own["service.instance.id"], own["process.pid"], attributes(given)["service.instance.id"])
        os.write(write, "\n".join(map(str, told)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with open(read) as said:  # noqa: PTH123 - a descriptor
        instance, process, of_pod = said.read().split("\n")
    assert instance != before
    assert process == str(pid)
    assert of_pod == f"pod-7/{pid}"
    assert attributes({})["service.instance.id"] == before
    assert resource.SERVERS


WORKERS = """
    import os, sys
    from loopwatch.telemetry.resource import worker_index

    def worker():
        asks, told = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(told, str(worker_index()).encode())
            sys.stdin.read()
            os._exit(0)
        os.close(told)
        return pid, os.read(asks, 9).decode()

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
    """Forked children are numbered from 0, one in place of another gets its number, and their parent has none; so too
    where two parents do that at the same time.
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WORKERS)]
    parents = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in parents:
        assert each.stdout is not None
        assert each.stdin is not None
        with each.stdout, each.stdin:
            assert each.stdout.read().split() == ["None", "0", "1", "2", "1"]
        assert each.wait() == 0
