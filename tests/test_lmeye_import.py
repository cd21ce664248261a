"""`fuse import lmeye`: files of both generations and of the first stage, and what is wrong with others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fuse.errors import CheckpointError
from fuse.importers import About, Imported
from fuse.importers.lmeye import sort_keys
from tests import tiny_lmeye
from tests.cli import fuse_forked
from tests.tiny_lmeye import BEGIN, END, network, save_clip, save_pickle, seeded

D = 16
TOKENS, PLACES = (f"clip.text_model.embeddings.{what}_embedding.weight" for what in ("token", "position"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


def sort(state: dict[str, torch.Tensor], **options: object) -> Imported:
    return sort_keys(state, About({key: str(value) for key, value in options.items()}))


def tower(clip: Path) -> dict[str, torch.Tensor]:
    return load_file(clip / "model.safetensors")


def blip2(folder: Path, d: int = D, rows: bool = True) -> Path:
    """A BLIP-2 folder with a Q-Former of 4 queries: a third of its file, the rest is not needed."""
    from fuse.branches.lmeye_blip2_projector_files import shapes

    config = {
        "hidden_size": d, "vision": 12, "width": 6, "queries": 4, "layers": 2, "heads": 2, "intermediate": 10,
        "every": 2, "activation": "gelu", "eps": 1e-12, "vision_eps": 1e-6,
    }  # fmt: skip
    made = seeded(shapes(config), 9)
    tensors = {key: t for key, t in made.items() if key.startswith("qformer.")}
    tensors |= {f"vision_model.{key}": t for key, t in made.items() if key.startswith("post_layernorm.")}
    tensors["query_tokens"] = made["query_tokens.weight"][None]
    tensors["vision_model.embeddings.class_embedding"] = torch.ones(1, 1, 12)
    if rows:
        tensors["language_model.shared.weight"] = torch.randn(20, d, generator=torch.Generator().manual_seed(1))
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    told = {"model_type": "blip-2", "qformer_config": {"num_attention_heads": 2}, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def test_the_first_generation(clip: Path) -> None:
    net = network(D)
    found = sort(net, clip=clip)
    assert found.graft and found.projector and not found.dropped
    assert found.projector.config == {"width": 8, "hidden_size": D, "tokens": 1}
    assert found.graft.config == {
        "hidden_size": D, "width": 8, "prompts": 3, "slots": 2, "place": "question",
        "clip": {"layers": 2, "heads": 2, "intermediate": 12, "activation": "quick_gelu", "eps": 1e-5},
    }  # fmt: skip
    assert torch.equal(found.graft.tensors["embedding_imgd.weight"], net["embedding_imgd"])
    assert torch.equal(found.projector.tensors["embedding_img.weight"], net["embedding_img"])
    whole = tower(clip)
    assert torch.equal(found.graft.tensors[TOKENS], whole[TOKENS.removeprefix("clip.")][[BEGIN, END]])
    assert torch.equal(found.graft.tensors[PLACES], whole[PLACES.removeprefix("clip.")][[0, 5]])  # p + 2


def test_the_ends_are_the_tokenizers_where_the_folder_has_one(clip: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps({"<|startoftext|>": 7, "<|endoftext|>": 9}))
    found = sort(network(D), clip=tmp_path / "clip")
    assert found.graft
    assert torch.equal(found.graft.tensors[TOKENS], tower(clip)[TOKENS.removeprefix("clip.")][[7, 9]])
    told = json.loads((tmp_path / "clip" / "config.json").read_text())
    told["text_config"] |= {"bos_token_id": 3, "eos_token_id": 4}  # as new configs have them: no quirk
    (tmp_path / "clip" / "config.json").write_text(json.dumps(told))
    (tmp_path / "clip" / "vocab.json").unlink()
    found = sort(network(D), clip=tmp_path / "clip")
    assert found.graft
    assert torch.equal(found.graft.tensors[TOKENS], tower(clip)[TOKENS.removeprefix("clip.")][[3, 4]])


def test_the_loader_of_the_published_scripts(clip: Path) -> None:
    """It puts `embedding_imgd` where `embedding_img` belongs; an import does so when it is asked."""
    net = network(D)
    found = sort(net, clip=clip, embedding_img="imgd")
    assert found.projector and found.graft
    assert torch.equal(found.projector.tensors["embedding_img.weight"], net["embedding_imgd"])
    assert torch.equal(found.graft.tensors["embedding_imgd.weight"], net["embedding_imgd"])
    assert found.dropped == {"embedding_img": "`embedding_imgd` was asked for in its place"}


def test_a_file_of_the_whole_model(clip: Path) -> None:
    """The text tower is its own, the rows of its added tokens are in the offsets, and the rest is accounted for."""
    net = network(D, c=64)
    wide = {f"clip.{key}": t for key, t in tiny_lmeye.clip(64, 1).state_dict().items()}
    table = torch.randn(34, D, generator=torch.Generator().manual_seed(1))
    whole = {**net, **wide, "llm.model.embed_tokens.weight": table, "llm.lm_head.weight": table}
    found = sort(whole)
    assert found.graft and found.projector
    assert found.graft.config["clip"]["heads"] == 1  # of 64 numbers
    assert torch.equal(found.graft.tensors["embedding_imgd.weight"], net["embedding_imgd"] + table[-1])
    assert torch.equal(found.projector.tensors["embedding_img.weight"], net["embedding_img"] + table[-2])
    assert found.dropped["llm.lm_head.weight"] == "the language model, which comes from its own folder"
    assert "llm.model.embed_tokens.weight" not in found.dropped
    assert found.dropped["clip.vision_model.embeddings.class_embedding"] == "CLIP's image side, which a branch has"
    assert {key for piece in found.pieces.values() for keys in piece.origins.values() for key in keys} | set(
        found.dropped
    ) == set(whole)


def test_the_first_stage_is_a_mapping_alone() -> None:
    shapes = {"imageLinear.weight": (3 * D, 8), "imageLinear.bias": (3 * D,), "new_embedding": (1, D)}
    found = sort(seeded(shapes))
    assert found.graft is None and found.projector
    assert found.projector.config == {"width": 8, "hidden_size": D, "tokens": 3}


def test_the_second_generation(clip: Path, tmp_path: Path) -> None:
    """The Q-Former goes into the projector; the row of id 0 into everything that stands at a placeholder."""
    net, folder = tiny_lmeye.second(D), blip2(tmp_path / "blip2")
    found = sort(net, clip=clip, blip2=folder)
    assert found.graft and found.projector and not found.dropped
    assert (found.graft.kind, found.projector.kind) == ("lmeye_blip2", "lmeye_blip2")
    assert found.graft.config["requests"] == 3
    assert found.graft.config["features"] == found.projector.config["width"] == 6
    row = load_file(folder / "model.safetensors")["language_model.shared.weight"][0]
    bias = found.projector.tensors["language_projection.bias"]
    torch.testing.assert_close(bias, net["language_projection.bias"] + row)
    for name in ("instruction_embedding_imgd", "instruction_embedding_imgq"):
        torch.testing.assert_close(found.graft.tensors[f"{name}.weight"], net[name] + row)
    last = tower(clip)[PLACES.removeprefix("clip.")][4 + 3 + 1]
    assert torch.equal(found.graft.tensors[PLACES][1], last)
    plain = sort(net, clip=clip, blip2=blip2(tmp_path / "other", rows=False))
    assert plain.projector
    assert torch.equal(plain.projector.tensors["language_projection.bias"], net["language_projection.bias"])


def refused(state: dict[str, torch.Tensor], **options: object) -> str:
    with pytest.raises(CheckpointError) as error:
        sort(state, **options)
    return str(error.value)


def without(net: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in net.items() if key not in names}


HINT = "`--set clip=FOLDER`: the CLIP that the network was trained with, openai/clip-vit-large-patch14"
BROKEN: list[tuple[dict[str, torch.Tensor], str]] = [
    (without(network(D), "llm2clip.bias"), "has no 'llm2clip.bias', which LMEye's network needs"),
    (without(network(D), "imgLinear.weight"), "has no 'imgLinear.weight', which LMEye's network needs"),
    (network(D) | {"strange": torch.ones(2)}, "has a key 'strange', which LMEye's files do not have"),
    (
        network(D) | {"llm2clip.weight": torch.ones(8, 9)},
        "llm2clip.weight has shape 8 x 9, and 8 x 16 is needed",
    ),
    (
        network(D) | {"promptMlp.weight": torch.ones(25, 8)},
        "promptMlp.weight has shape 25 x 8, and 24 x 8 is needed",
    ),
    (
        network(D) | {"imgLinear.weight": torch.ones(17, 8)},
        "imgLinear.weight gives 17 numbers, no tokens of 16 each, which embedding_img has",
    ),
    (
        network(D) | {"embedding_imgd": torch.ones(1, 17)},
        "embedding_imgd has shape 1 x 17, and 1 x 16 is needed",
    ),
    (network(D, c=6), "text_model.embeddings.token_embedding.weight has shape 40 x 8, and any x 6 is needed"),
    (network(D, p=15), "the text tower has 16 positions, and the network needs 18"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "told"), BROKEN)
def test_what_is_no_network(clip: Path, state: dict[str, torch.Tensor], told: str) -> None:
    assert refused(state, clip=clip) == told


def test_frozen_parts_that_are_nowhere(clip: Path, tmp_path: Path) -> None:
    assert refused(network(D)) == f"holds no text tower of a CLIP, and the network needs one ({HINT})"
    hint = "`--set blip2=FOLDER`: the BLIP-2 that the network was trained with, Salesforce/blip2-flan-t5-xl"
    told = f"holds no Q-Former, and this generation of LMEye looks through one ({hint})"
    assert refused(tiny_lmeye.second(D), clip=clip) == told
    folder = blip2(tmp_path / "blip2")
    told = f"{folder}: holds none of text_model., text_projection., which --set clip is for"
    assert refused(network(D), clip=folder) == told
    told = "language_model.shared.weight has shape 20 x 16, and any x 24 is needed"
    assert refused(tiny_lmeye.second(24), clip=clip, blip2=folder) == told


def imported(*args: object) -> Any:
    return fuse_forked("import", "lmeye", *args)


def test_the_command(clip: Path, tmp_path: Path) -> None:
    """The file of a DDP run in torch's old format, with Adam's state beside the net."""
    file = save_pickle(network(D), tmp_path / "checkpoint_with_epoch4.pth")
    ran = imported(file, tmp_path / "out", "--set", f"clip={clip}")
    assert (ran.code, ran.err) == (0, ""), ran
    told = json.loads((tmp_path / "out" / "graft.json").read_text())
    assert told["kind"] == "lmeye" and told["host"]["hidden_size"] == D
    assert told["source"]["tool"] == "fuse import lmeye"
    graft = load_file(tmp_path / "out" / "graft.safetensors")
    assert torch.equal(graft["imgdLinear.weight"], network(D)["imgdLinear.weight"])
    assert json.loads((tmp_path / "out" / "projector.json").read_text())["kind"] == "lmeye"


def test_the_command_refuses(clip: Path, tmp_path: Path) -> None:
    file = save_pickle(network(D), tmp_path / "checkpoint.pth")
    ran = imported(file, tmp_path / "out")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == f"fuse: {file}: holds no text tower of a CLIP, and the network needs one ({HINT})\n"
    ran = imported(file, tmp_path / "out", "--set", "embedding_img=both", "--set", f"clip={clip}")
    assert (ran.code, ran.err) == (2, "fuse: --set: embedding_img is 'both', not one of own, imgd\n")
    assert not (tmp_path / "out").exists()
