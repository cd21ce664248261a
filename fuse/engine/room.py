"""How much memory the threads may use together."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Room:
    """Bytes to share out. What needs more than there is waits until it has all of it to itself."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = Condition()

    @contextmanager
    def taken(self, need: int) -> Iterator[None]:
        """Waits for `need` bytes and gives them back when the block ends."""
        need = min(need, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= need)
            self._free -= need
        try:
            yield
        finally:
            with self._changed:
                self._free += need
                self._changed.notify_all()
