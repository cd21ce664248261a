"""Threads that work until they are done or called off."""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar

from fuse import interruption
from fuse.engine.views import Stopped

T = TypeVar("T")


@contextmanager
def team(threads: int, stop: Event, enter: Callable[[], object] = lambda: None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads. Where the block fails, `stop` is set and what has not begun is left.

    enter: called in each thread first. The block ends when all threads have.
    """
    pool = ThreadPoolExecutor(threads, "fuse", enter)
    try:
        yield pool
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=stop.is_set())


def finished(jobs: Collection[Future[T]], stop: Event) -> Iterator[Future[T]]:
    """The jobs as they finish, each with a result.

    Where one fails, the others are called off, and once they rest the first failure, in the order of the jobs, is
    raised: Stopped where there is none but those that were called off.
    """
    for job in as_completed(jobs):
        interruption.check()
        if job.exception():
            stop.set()
            for other in jobs:
                other.cancel()
            wait(jobs)
            raise next((error for job in jobs if (error := error_of(job))), Stopped())
        yield job


def error_of(job: Future[Any]) -> BaseException | None:
    """Why a job that has ended failed; None where it did not, or was called off."""
    error = None if job.cancelled() or not job.done() else job.exception()
    return None if isinstance(error, Stopped) else error
