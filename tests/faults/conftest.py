"""What is merged under faults, made once for each process, and the end of the process that runs are forked from."""

from collections.abc import Iterator

import pytest

from tests.faults import harness
from tests.faults.scene import Scene, make_scene


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    yield make_scene(tmp_path_factory.mktemp("faults"))
    harness.stop()
