"""Functions that the pools of these tests run. Workers import this module, so it imports little."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn


class Odd(Exception):
    """An error of the program's own."""


def double(number: int) -> int:
    return 2 * number


def even(number: int) -> int:
    if number % 2:
        raise Odd(number)
    return number


def until_there(path: str) -> int:
    """Run until a file exists, using a little processor time."""
    while not Path(path).exists():
        time.sleep(0.005)
    return os.getpid()


def stuck(path: str) -> int:
    """Block in a system call until the other end of a FIFO is opened."""
    os.close(os.open(path, os.O_RDONLY))
    return os.getpid()


def burn(seconds: float) -> float:
    """Use ``seconds`` of processor time of this thread."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass
    return seconds


def killed(number: int) -> NoReturn:
    os.kill(os.getpid(), number)
    time.sleep(60)
    raise AssertionError


def exits(code: int) -> NoReturn:
    os._exit(code)


def unpicklable() -> object:
    return lambda: None


def nested(number: int) -> tuple[int, int]:
    """Use executors inside a worker."""
    with ThreadPoolExecutor(1) as threads, ProcessPoolExecutor(1, mp_context=get_context("fork")) as processes:
        return threads.submit(double, number).result(), processes.submit(double, number).result()


SIGKILL = int(signal.SIGKILL)
