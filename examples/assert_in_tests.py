"""A test of your own that fails when a coroutine blocks its loop; run it with pytest."""

import asyncio

import pytest

from loopwatch.testing import assert_not_blocked


async def handler() -> int:
    """The coroutine under test."""
    await asyncio.sleep(0.01)
    return 42


def test_handler_does_not_block() -> None:
    """The handler returns to the loop at least every 200 ms."""

    @assert_not_blocked(0.2)
    async def check() -> None:
        assert await handler() == 42

    asyncio.run(check())


def test_blocking_is_detected() -> None:
    """A handler that sleeps on the loop fails the test, and the message says why."""
    import time

    @assert_not_blocked(0.05)
    async def check() -> None:
        time.sleep(0.1)

    with pytest.raises(AssertionError, match=r"time\.sleep|sleeping"):
        asyncio.run(check())
