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
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.members import perturbed, save_member

    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip
    for seed, name in enumerate(("base", "a", "b")):
        save_member(perturbed(model, seed) if seed else model, root / name)
    return root


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `v1` and `v2`: two tiny LLaVAs of one base with their processors."""
    from tests import recipe_members

    root = tmp_path_factory.mktemp("seeing")
    for seed, name in enumerate(("v1", "v2")):
        recipe_members.save("llava", root / name, seed)
    return root
