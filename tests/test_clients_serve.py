"""`transformers serve` over a portable folder: its answers over HTTP are those of `fuse ask`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.models.auto import modeling_auto
from transformers.utils.import_utils import is_serve_available

from tests.cli import fuse_here
from tests.client_folders import zoo
from tests.test_recipes import ROOT

# What the server's Python reads first: there is no `fuse`, and torchvision's names are there beside a CPU build of torch.
SITE = """
import sys


class Finder:
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "fuse":
            raise ModuleNotFoundError(f"there is no {name} here", name=name)
        if name == "torchvision" and not hasattr(self, "library"):
            import torch

            if not torch.version.cuda:
                self.library = torch.library.Library("torchvision", "DEF")
                for one in ("nms", "qnms"):
                    self.library.define(one + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, Finder())
"""
TOOL = ROOT.parent / "tools" / "clients" / "serve.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = zoo(tmp_path_factory.mktemp("zoo"))
    ran = fuse_here("export", where, "--to", "portable", where.with_name("portable"))
    assert (ran.code, ran.err) == (0, ""), ran
    return where


@pytest.mark.skipif(
    not is_serve_available(), reason="fastapi, uvicorn or openai is not installed (transformers[serving])"
)
def test_a_picture_and_a_question_over_http(folder: Path) -> None:
    question, scene = "what shape is red ?", folder.with_name("scene.png")
    (folder.parent / "site").mkdir()
    (folder.parent / "site" / "sitecustomize.py").write_text(SITE)
    env = {"PYTHONPATH": str(folder.parent / "site"), "HF_MODULES_CACHE": str(folder.parent / "modules")}
    ran = subprocess.run(
        [sys.executable, TOOL, folder.with_name("portable"), scene, question, "--max-tokens", "8"],
        cwd=folder.parent, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | env | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    found = json.loads(ran.stdout)
    told = fuse_here("ask", folder, question, "--image", scene, "--max-tokens", "8").out.strip()
    assert found["answer"] == told == "northwest circle"
    assert len(found["streamed"]) > 1 and "".join(found["streamed"]).strip() == told
    assert found["usage"]["completion_tokens"] == 3


def test_the_names_that_the_server_looks_for() -> None:
    """`import fuse` writes them, and leaves those of others."""
    for names in (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    ):  # fmt: skip
        assert names["fuse"] == "FusedForConditionalGeneration"
        assert names["llava"] == "LlavaForConditionalGeneration"
