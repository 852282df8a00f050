"""Real interpreters with the interface of ``concurrent.interpreters`` (3.14), made of what 3.13 has of it in private.

Only what :mod:`loopwatch.workers.interpreters` uses, so that its code is tested where the module does not exist yet.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import _interpqueues
import _interpreters

ERROR = 2
"""What an item of a queue becomes when its interpreter ends: an error."""

CALL = """\
import pickle, _interpqueues
function, args = pickle.loads({call!r})
_interpqueues.put({queue}, pickle.dumps(function(*args)), 0, {error})
"""


class ExecutionFailed(Exception):
    """The code raised."""


class Interpreter:
    """One interpreter."""

    def __init__(self) -> None:
        self.id = _interpreters.create(reqrefs=True)
        _interpreters.incref(self.id)

    def exec(self, code: str) -> None:
        """Run ``code`` in its ``__main__``."""
        failed = _interpreters.exec(self.id, code, restrict=True)
        if failed is not None:
            raise ExecutionFailed(failed.formatted)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function by its name."""
        queue = _interpqueues.create(0, 0, ERROR)
        try:
            self.exec(CALL.format(call=pickle.dumps((function, args)), queue=queue, error=ERROR))
            return pickle.loads(_interpqueues.get(queue)[0])
        finally:
            _interpqueues.destroy(queue)

    def close(self) -> None:
        """End it."""
        _interpreters.destroy(self.id, restrict=True)


create = Interpreter


def count() -> int:
    """Return the number of interpreters, the main one included."""
    return len(_interpreters.list_all())
