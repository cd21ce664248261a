"""Members to attack, made once, and the end of the process that the attacks are forked from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks import harness


@pytest.fixture(scope="session", autouse=True)
def zygote() -> Iterator[None]:
    yield
    harness.stop()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `a` and `b`: three tiny Llamas of one base, to be copied and damaged."""
    from tests.members import save_family

    return save_family(tmp_path_factory.mktemp("family"), "base", "a", "b", num_key_value_heads=2)


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `v1` and `v2`: two tiny LLaVAs of one base with their processors."""
    from tests import recipe_members

    root = tmp_path_factory.mktemp("seeing")
    for seed, name in enumerate(("v1", "v2")):
        recipe_members.save("llava", root / name, seed)
    return root
