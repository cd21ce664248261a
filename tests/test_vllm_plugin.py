"""The plugin for vLLM, as far as it needs no vLLM: what it registers, and which folders it refuses."""

import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fuse.errors import RecipeError
from fuse.serve.vllm_limits import check_served, refusal
from tests import vllm_folders
from tests.test_fused_model import fused

ROOT = Path(__file__).parent.parent


class Registry:
    def __init__(self) -> None:
        self.models: dict[str, str] = {}

    def get_supported_archs(self) -> set[str]:
        return set(self.models)

    def register_model(self, name: str, path: str) -> None:
        assert name not in self.models, "vLLM warns of a model that is registered again"
        self.models[name] = path


def test_it_names_the_model_once_and_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: Any = ModuleType("vllm")
    theirs.ModelRegistry = Registry()
    monkeypatch.setitem(sys.modules, "vllm", theirs)
    register = import_module("fuse.serve.vllm").register
    register()
    register()
    assert theirs.ModelRegistry.models == {"FusedForConditionalGeneration": "fuse.serve.vllm_model:FusedForVLLM"}
    assert "fuse.serve.vllm_model" not in sys.modules


def test_entry_points_name_what_there_is() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for group in ("vllm.general_plugins", "lmms_eval.models"):
        for value in told[group].values():
            module, _, name = value.partition(":")
            assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize(
    ("members", "options", "why"),
    [
        (["a=llava", "b=llava_onevision"], {}, ""),
        (["a=internvl", "b=llava"], {}, ""),
        (["a=qwen2_vl"], {}, "its host qwen2_vl has positions in three dimensions"),
        (["a=paligemma"], {}, "its host paligemma attends in both directions over an image"),
        (["a=gemma3"], {}, "its host gemma3 attends in both directions over an image"),
        (["a=aya_vision"], {}, "its text model is cohere2, and these are served: llama, mistral, qwen2, qwen3"),
        (["a=llava", "b=internvl"], {"b": (("positions", "shared"),)}, "branch 'b' has positions: shared"),
        (["a=llava", "b=internvl"], {"b": (("max_tokens", 2), ("prune", "similarity"))}, ""),
    ],
)
def test_what_is_refused(members: list[str], options: dict[str, Any], why: str) -> None:
    model, _ = fused(*members, **options)
    assert refusal(model.config) == why


def test_grafts_and_readers_of_the_question_are_refused() -> None:
    config = fused("a=llava")[0].config
    config = type(config).from_dict(config.to_dict())
    config.grafts = [{"name": "memory", "kind": "mks2", "scale": 0}]
    assert refusal(config) == ""  # it is not heard
    config.grafts = [{"name": "memory", "kind": "mks2", "scale": 0.5}]
    assert refusal(config) == "graft 'memory' reaches into the layers of the host"
    config.grafts, config.branches = [], [{**config.branches[0], "kind": "slime"}]
    assert refusal(config) == "branch 'a' reads the question, and vLLM encodes an image without it"
    config.branches = []
    assert refusal(config) == "it has no branch"
    with pytest.raises(RecipeError) as told:
        check_served(config, "out")
    assert str(told.value) == "out: vLLM cannot run this folder: it has no branch (transformers runs it)"


@pytest.mark.parametrize("name", vllm_folders.FOLDERS)
def test_folders_that_were_compared_in_vllm_are_not_refused(name: str, tmp_path: Path) -> None:
    model = vllm_folders.make(name, tmp_path)
    assert model.config.text_config.model_type == name
    assert refusal(model.config) == ""
