"""The threads that search: as many as there are cores, with a bounded queue before them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import threadpoolctl  # type: ignore[import-untyped]

from chromseek.data.errors import Busy
from chromseek.indexer.vectors import cores

MAX_WAITING = 256

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """A pool of threads; each search runs in one of them, on one core."""

    def __init__(self, n: int | None = None, *, max_waiting: int = MAX_WAITING) -> None:
        """Start with `n` threads, one per core by default, and room for `max_waiting` calls behind them."""
        self._n = n or cores()
        self._pool = ThreadPoolExecutor(self._n, thread_name_prefix="search", initializer=_one_core)
        self._room = self._n + max_waiting
        self._inside = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the pool. Raises Busy when too many calls wait already."""
        if self._inside >= self._room:
            raise Busy(
                f"{self._inside - self._n} requests wait already", code="SERVICE-BUSY", fix="try again in a second"
            )
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))
        finally:
            self._inside -= 1

    def close(self) -> None:
        """End the threads, once what they do is done."""
        self._pool.shutdown(cancel_futures=True)


def _one_core() -> None:
    # OpenMP's setting belongs to the thread that makes it, so it is made here and not once for all.
    threadpoolctl.threadpool_limits(1)
