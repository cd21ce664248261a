"""What is merged under faults, made once for each process, and the end of the process that runs are forked from."""

from collections.abc import Iterator

import pytest

from tests.faults import harness
from tests.faults.scene import Scene, in_memory, make_scene


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    with in_memory() as folder:
        yield make_scene(folder)
        harness.stop()
