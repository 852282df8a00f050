"""Something whose modules take longer to load than a loop may be held: made soon in a thread, or at once on demand."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from loopwatch.core.off_loop import off_loop
from loopwatch.core.own_thread import OwnThread

Made = TypeVar("Made")


class Late(Generic[Made]):
    """Makes one thing, once.

    Args:
        make: makes it.
        modules: what it needs of modules, loaded one after the other in the thread of :meth:`soon`; it can be given up
            between two of them.
        failed: takes what goes wrong in that thread.

    Attributes:
        made: the thing, None before it is made and if it cannot be.

    Example:
        >>> late = Late(lambda: [42], (), print)
        >>> late.made, late.now(), late.now() is late.made
        (None, [42], True)
    """

    def __init__(
        self, make: Callable[[], Made], modules: Sequence[str], failed: Callable[[BaseException], object]
    ) -> None:
        self.made: Made | None = None
        self._make, self._modules = make, modules
        self._lock = threading.RLock()  # a signal handler of the program may come in between
        self._is_over = self._is_being_made = False
        self.thread = OwnThread("loader", self._run, lambda: None, lambda: self.is_waiting, failed)

    @property
    def is_waiting(self) -> bool:
        """Whether it has yet to be made."""
        return self.made is None and not self._is_over

    def soon(self) -> None:
        """Have it made in a thread.

        Raises:
            RuntimeError: there can be no more threads.
        """
        if self.is_waiting:
            self.thread.start()

    def now(self) -> Made | None:
        """Return the thing, made now if need be; never reads files on the thread of a loop.

        None if it was given up or cannot be made, and for who asks while he makes it, such as a signal handler.

        Raises:
            BaseException: what ``make`` raises; it is not called again.
        """
        if self.is_waiting:
            off_loop(self._make_it)
        return self.made

    def give_up(self, timeout: float) -> None:
        """Have it not made any more, if it is not; wait at most ``timeout`` s for the thread."""
        self._is_over = True
        self.thread.end(timeout)

    def _make_it(self) -> None:
        with self._lock:
            if self.is_waiting and not self._is_being_made:
                self._is_being_made = True
                try:
                    self.made = self._make()
                except BaseException:
                    self._is_over = True
                    raise

    def _run(self) -> None:
        for name in self._modules:
            if not self.thread.stays() or not self.is_waiting:
                return
            importlib.import_module(name)
        if self.thread.stays():
            self._make_it()
