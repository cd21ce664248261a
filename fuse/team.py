"""Threads that work until they are done or called off, and the wait for them.

Python raises an interruption in the middle of its own locks too, and a lock that was just taken then stays so: threads
wait for it until the machine is switched off. So in a team's block signals are held, and heard while we wait.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, TypeVar

from fuse import interruption

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
PATIENCE = 0.1  # seconds between two looks for a signal


class Stopped(Exception):
    """The work was called off while it ran."""


@contextmanager
def team(threads: int, stop: Event, enter: Callable[[], object] = lambda: None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads. Where the block fails, `stop` is set and what has not begun is left.

    enter: called in each thread first. The block ends when all threads have. In it signals are held: `ended`,
    `finished` and `made` hear them, and `interruption.heard` lets them through.
    """
    with interruption.held():
        pool = ThreadPoolExecutor(threads, "fuse", enter)
        try:
            yield pool
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=stop.is_set())


def ended(jobs: Collection[Future[T]]) -> Iterator[Future[T]]:
    """The jobs as they end, well or not. Raises an interruption within PATIENCE."""
    done: SimpleQueue[Future[T]] = SimpleQueue()
    for job in jobs:
        job.add_done_callback(done.put)
    for _ in jobs:
        yield _next(done)


def finished(jobs: Collection[Future[T]], stop: Event) -> Iterator[Future[T]]:
    """The jobs as they finish, each with a result.

    Where one fails, the others are called off, and once they rest the first failure, in the order of the jobs, is
    raised: Stopped where there is none but those that were called off.
    """
    coming = ended(jobs)
    for job in coming:
        if job.exception():
            stop.set()
            for other in jobs:
                other.cancel()
            for _ in coming:
                pass
            raise next((error for job in jobs if (error := error_of(job))), Stopped())
        yield job


def made(jobs: Mapping[K, Future[T]], stop: Event) -> dict[K, T]:
    """What each job made, once all have; failures as `finished` has them."""
    with interruption.held():
        for _ in finished(jobs.values(), stop):
            pass
        return {key: job.result() for key, job in jobs.items()}


def error_of(job: Future[Any]) -> BaseException | None:
    """Why a job that has ended failed; None where it did not, or was called off."""
    error = None if job.cancelled() or not job.done() else job.exception()
    return None if isinstance(error, Stopped) else error


def _next(done: SimpleQueue[Future[T]]) -> Future[T]:
    while True:
        interruption.check()
        try:
            return done.get(timeout=PATIENCE)
        except Empty:
            continue
