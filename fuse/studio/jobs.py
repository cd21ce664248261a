"""Work that takes its time, one job after another, in the main thread: signals and bounds on time hold only there."""

import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

from fuse import interruption
from fuse.errors import FuseError, in_a_line, one_line

State = Literal["waiting", "running", "done", "failed", "stopped"]
OVER = frozenset({"done", "failed", "stopped"})


@dataclass(eq=False)
class Job:
    """One piece of work. name: what the page calls it. done, total: how far it is, in bytes or in things; 0 where it
    does not say. result: what the work returned, or has so far. problem: a sentence, where it failed or was stopped."""

    name: str
    work: Callable[["Job"], Any]
    state: State = "waiting"
    result: Any = None
    problem: str = ""
    done: int = 0
    total: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def advance(self, count: int) -> None:
        self.done += count

    def end(self, state: State, problem: str = "") -> None:
        self.state, self.problem = state, problem
        self.over.set()


class Jobs:
    """The queue. `run` belongs to the main thread; everything else may be called from any."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.main_thread()
        self.running: Job | None = None
        self.interrupted: Job | None = None  # by a signal that `stop` did not send

    def submit(self, name: str, work: Callable[[Job], Any]) -> Job:
        """Have the work done after what waits already; its job, at once."""
        job = Job(name, work)
        self._queue.put(job)
        return job

    def stop(self, job: Job) -> None:
        """End a job as Ctrl-C does on the command line, or take it out of the queue; nothing where it is over."""
        with self._lock:
            if job.state == "waiting":
                job.end("stopped", "stopped before it began")
            elif job is self.running and not self._stopping:
                self._stopping = True
                signal.pthread_kill(self._thread.ident or 0, signal.SIGINT)

    def close(self) -> None:
        """Let `run` return once what waits is done."""
        self._queue.put(None)

    def run(self) -> None:
        """Do the jobs until `close`. Raises KeyboardInterrupt and SystemExit as signals do, but for `stop`'s."""
        self._thread = threading.current_thread()
        job: Job | None = None
        while True:
            try:
                job = job or self._queue.get()
                if job is None:
                    return
                self._do(job)
                job = None
            except KeyboardInterrupt:
                if not self._stopping:
                    raise
                self._stopping = False
                interruption.listen()  # forgets the signal

    def _do(self, job: Job) -> None:
        with self._lock:
            if job.state != "waiting":
                return
            job.state, self.running = "running", job
        try:
            job.result = job.work(job)
            job.end("done")
        except (KeyboardInterrupt, SystemExit) as stop:
            if job.state == "running":
                job.end("stopped", left(stop))
                self.interrupted = None if self._stopping else job
            raise
        except Exception as error:  # shown on the page, where nobody reads a traceback; the log has it
            job.end("failed", problem_of(error))
            if not isinstance(error, FuseError | OSError | MemoryError):
                traceback.print_exc()
        finally:
            with self._lock:
                self.running = None


def left(stop: BaseException) -> str:
    """What an interrupted job leaves, in words."""
    notes = getattr(stop.__cause__ or stop, "__notes__", ())
    return one_line(f"stopped; {'; '.join(notes) or 'nothing was written'}")


def problem_of(error: Exception) -> str:
    """An error as the command line tells it."""
    if isinstance(error, FuseError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory; nothing was written"
    if isinstance(error, OSError):
        return one_line(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    return one_line(f"a bug of fuse, told in the terminal: {type(error).__name__}: {in_a_line(error)}")
