"""The files of encoder branches: names, sizes and preprocessing without torch, and what is refused."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import load_file, save_file

from fuse.branches import open_clip_files, timm_files
from fuse.branches.encoder import EncoderBranch, EncoderEyes
from fuse.branches.encoder_files import read_encoder
from fuse.errors import CheckpointError, MachineError, RecipeError
from tests.tiny_encoders import (
    HOST,
    VIT,
    see,
    whole_clip,
    write_projector,
    write_transformers,
)  # fmt: skip


def test_a_file_of_the_vision_tower_alone(tmp_path, installed):
    visual = whole_clip("plain", tmp_path)
    save_file({key: value.clone() for key, value in visual.state_dict().items()}, tmp_path / "visual.safetensors")
    entry = {"name": "c", "open_clip": "plain", "projector": write_projector(tmp_path, 32)}
    names = [
        {row.name for row in read_encoder(entry | {"weights": file}, relative_to=tmp_path).rows if row.name}
        for file in ("visual.safetensors", "clip.safetensors")
    ]
    assert names[0] == names[1]


REGISTRY = {  # size of a token, and side of the grid: input size over stride
    "RN50x4": (2560, 9), "ViT-B-32": (768, 7), "ViT-L-14-CLIPA-336": (1024, 24), "coca_ViT-B-32": (768, 7),
    "ViT-B-16-SigLIP-384": (768, 24), "convnext_large_d_320": (1536, 10), "EVA02-B-16": (768, 14), "EVA01-g-14": (1408, 16),
    "MobileCLIP-B": (768, 14), "MobileCLIP-S1": (1024, 8), "MobileCLIP2-S3": (3072, 4), "PE-Core-T-16-384": (192, 24),
    "swin_base_patch4_window7_224": (1024, 7), "vit_relpos_medium_patch16_cls_224": (512, 14),
    "vit_medium_patch16_gap_256": (512, 16), "ViTamin-XL-256": (1152, 16),
}  # fmt: skip


def hollow(path: Path, module: torch.nn.Module, prefix: str) -> None:
    """A safetensors file of the module's tensors that takes no disk: a header, and a hole."""
    dtypes = {torch.float32: "F32", torch.int64: "I64"}
    begin, header = 0, {}
    for key, value in module.state_dict().items():
        end = begin + value.numel() * value.element_size()
        header[prefix + key] = {"dtype": dtypes[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + begin)


@pytest.mark.parametrize("name", REGISTRY)
def test_registry_towers_build_on_meta_with_the_names_and_sizes_that_plan_sees(tmp_path, name):
    model = open_clip_files.architecture(name, "")
    with torch.device("meta"):
        visual = _build_vision_tower(model["embed_dim"], dict(model["vision_cfg"]), model["quick_gelu"])
    hollow(tmp_path / "w.safetensors", visual, "visual.")
    width, side = REGISTRY[name]
    entry = {"name": "c", "open_clip": name, "weights": "w.safetensors", "projector": write_projector(tmp_path, width)}
    files = read_encoder(entry, relative_to=tmp_path)
    assert files.grid == (side, side)
    with torch.device("meta"):
        branch = EncoderBranch(files.config).eval()
    rows = {row.name: row.entry.shape for row in files.rows if row.name}
    assert rows == {key: tuple(value.shape) for key, value in branch.state_dict().items()}
    prepared = EncoderEyes(files.config, tmp_path).prepare(Image.new("RGB", (64, 64)))
    assert prepared.layout == (side * side,) and prepared.grid == (1, side, side)
    (seen,) = see(branch, prepared.inputs["pixel_values"].to("meta")[None])
    assert seen.tokens.shape == (side * side, HOST)
    wrong = entry | {"projector": "wrong.safetensors"}
    save_file({"weight": torch.zeros(HOST, width + 1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_encoder(wrong, relative_to=tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/wrong.safetensors: takes tokens of {width + 1} numbers but the encoder gives {width}"
    )


def test_preprocessing_is_open_clips_table_for_every_published_model():
    from open_clip.pretrained import _PRETRAINED

    kinds = set()
    for name, tags in _PRETRAINED.items():
        for tag, row in tags.items():
            model = {"quick_gelu": bool(row.get("quick_gelu")), "vision_cfg": {}}
            way = open_clip_files.preprocessing(name, tag, model, Path("nowhere/w.safetensors"), "")
            assert way == {k: list(row[k]) if isinstance(row[k], tuple) else row[k] for k in open_clip_files.PREPROCESS}
            kinds.add(json.dumps(way))
    assert len(kinds) >= 7


@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_architecture_knows_how_images_are_prepared_or_asks_for_the_tag(name):
    model = open_clip_files.architecture(name, "")
    if name in {"ViT-L-14", "ViT-H-14-quickgelu"}:
        with pytest.raises(RecipeError) as error:
            open_clip_files.preprocessing(name, "", model, Path("nowhere/w.safetensors"), "vision.c")
        tag = {"ViT-L-14": "laion400m_e31", "ViT-H-14-quickgelu": "metaclip_fullcc"}[name]
        assert str(error.value) == (
            f"vision.c: the published weights of {name} want images prepared in 2 ways "
            f"(say which they are, e.g. {name}:{tag}, or keep open_clip_config.json beside the weights)"
        )
        return
    way = open_clip_files.preprocessing(name, "", model, Path("nowhere/w.safetensors"), "")
    PreprocessCfg(size=(8, 8), **way)
    assert ("SigLIP" in name or "siglip" in name) <= (way["resize_mode"] == "squash" and way["mean"] == [0.5] * 3)


def test_the_names_of_timms_architectures_are_those_that_it_registers(monkeypatch):
    names = timm_files.architectures()
    assert set(timm.list_models()) <= names
    assert all(timm.is_model(name) for name in names)
    assert "vit_tiny_patch16_224_in21k" in names, "an old name, which timm still builds"
    timm_files.architectures.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError) as error:
        timm_files.architectures()
    assert str(error.value) == "timm is not installed (pip install timm)"


def test_reading_files_imports_neither_torch_nor_the_libraries(tmp_path):
    save_file({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    code = (
        "import sys; from pathlib import Path; from fuse.branches.encoder_files import read_encoder\n"
        "try: read_encoder({'name': 'c', 'open_clip': 'ViT-B-32', 'weights': 'w.safetensors', 'projector': 'p'},"
        f" relative_to=Path({str(tmp_path)!r}))\n"
        "except Exception as error: print(error)\n"
        "print({'torch', 'open_clip', 'timm', 'transformers', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()" and "has no tensor" in out


@pytest.fixture
def tiny(tmp_path, installed):
    whole_clip("plain", tmp_path)
    write_projector(tmp_path, 32)
    write_transformers("clip", tmp_path / "encoder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "hidden.safetensors").write_bytes(b"PK\x03\x04")
    return tmp_path


PICKLE = "is not safetensors but a pickle, which can run code; fuse does not read it (where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE))"
BASE = {"name": "c", "open_clip": "plain", "weights": "clip.safetensors", "projector": "projector.safetensors"}
REFUSED = {
    "two libraries": ({"timm": "test_vit"}, RecipeError, "vision.c: names 2 of open_clip, timm and encoder (name one)"),
    "no library": ({"open_clip": None}, RecipeError, "vision.c: names 0 of open_clip, timm and encoder (name one)"),
    "no projector": ({"projector": None}, RecipeError, "vision.c: has no projector (`projector: FILE.safetensors`, trained for the host)"),
    "no weights": ({"weights": None}, RecipeError, "vision.c: open_clip needs `weights: FILE.safetensors`"),
    "weights of a folder": ({"open_clip": None, "encoder": "encoder"}, RecipeError, "vision.c: `encoder` is a folder that holds its weights; leave `weights` out"),
    "unknown architecture": ({"open_clip": "ViT-B-23"}, RecipeError, "vision.c: open_clip has no architecture 'ViT-B-23' (did you mean: ViT-B-32, ViT-S-32, ViT-M-32)"),
    "path as architecture": ({"open_clip": "../plain"}, RecipeError, "vision.c: open_clip has no architecture '../plain' (did you mean: plain)"),
    "unknown tag": ({"open_clip": "ViT-B-32:opnai"}, RecipeError, "vision.c: open_clip has no weights 'opnai' of ViT-B-32 (did you mean: openai)"),
    "tag of another activation": ({"open_clip": "ViT-B-32:openai"}, RecipeError, "vision.c: the weights 'openai' have another activation than ViT-B-32 (write ViT-B-32-quickgelu:openai)"),
    "no such file": ({"weights": "none.safetensors"}, RecipeError, "{}/none.safetensors: there is no such file (`weights` is one safetensors file)"),
    "folder": ({"weights": "folder"}, RecipeError, "{}/folder: is a folder (`weights` is one safetensors file)"),
    "no such projector": ({"projector": "none.safetensors"}, RecipeError, "{}/none.safetensors: there is no such file (`projector` is one safetensors file)"),
    "pickle": ({"weights": "pickle.bin"}, CheckpointError, "{}/pickle.bin: " + PICKLE),
    "pickle by another name": ({"weights": "hidden.safetensors"}, CheckpointError, "{}/hidden.safetensors: " + PICKLE),
    "pickled projector": ({"projector": "pickle.bin"}, CheckpointError, "{}/pickle.bin: " + PICKLE),
    "another architecture": ({"open_clip": "clipa"}, CheckpointError, "{}/clip.safetensors: tensor 'visual.ln_pre.bias' is not one of clipa's"),
    "missing": ({"open_clip": "wide"}, CheckpointError, "{}/clip.safetensors: has no tensor 'visual.transformer.resblocks.0.ls_1.gamma' of wide (6 of 49 are missing)"),
    "timm fetches": ({"open_clip": None, "timm": "hf-hub:a/b"}, RecipeError, "timm: 'hf-hub:a/b' is not the name of an architecture (e.g. vit_small_patch14_dinov2)"),
    "projector as weights": ({"open_clip": None, "timm": "test_vit", "weights": "projector.safetensors", "projector": "clip.safetensors"}, CheckpointError, "{}/clip.safetensors: tensor 'logit_scale' is not of a projector that fuse knows (`0.weight`, `0.bias`, `2.weight` ..., `linear_1.weight` ..., or one `weight`, after `mm_projector.` or nothing)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tiny, case):
    change, kind, told = REFUSED[case]
    with pytest.raises(kind) as error:
        read_encoder(BASE | change, relative_to=tiny)
    assert str(error.value) == told.replace("{}", str(tiny))


def test_the_config_beside_open_clip_weights_rules(tiny):
    prepare = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "longest", "interpolation": "bilinear"}
    told = {"model_cfg": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": {}}, "preprocess_cfg": prepare}
    beside = tiny / "open_clip_config.json"
    beside.write_text(json.dumps(told))
    assert read_encoder(BASE, relative_to=tiny).config["preprocess"] == prepare | {"size": [16, 16]}
    for change, problem in (
        ({"model_cfg": told["model_cfg"] | {"quick_gelu": True}}, "the weights beside it have another activation than plain (write plain-quickgelu)"),
        ({"model_cfg": {"vision_cfg": VIT | {"layers": 4}}}, "the weights beside it are no plain: layers is 4, not 3"),
        ({"model_cfg": None}, "is not {model_cfg, preprocess_cfg}"),
        ({"preprocess_cfg": {"mean": 0.5}}, "preprocess_cfg.mean is 0.5, not three numbers"),
        ({"preprocess_cfg": {"resize_mode": "stretch"}}, "preprocess_cfg asks for 'bicubic', 'stretch', which open_clip does not have"),
    ):  # fmt: skip
        beside.write_text(json.dumps(told | change))
        with pytest.raises(CheckpointError) as error:
            read_encoder(BASE, relative_to=tiny)
        assert str(error.value) == f"{beside}: {problem}"


def test_timm_configs_that_do_not_fit(tiny):
    entry = BASE | {"open_clip": None, "timm": "test_vit"}
    beside = tiny / "config.json"
    for told, problem in (
        ({"architecture": "test_vit2"}, "the weights beside it are a 'test_vit2', not 'test_vit'"),
        ({"architecture": "test_vit", "model_args": {"depth": 2}}, "model_args change the architecture, which fuse does not build"),
        ({"architecture": "test_vit", "pretrained_cfg": {"input_size": 3}}, "input_size is 3, not [3, h, w]"),
    ):  # fmt: skip
        beside.write_text(json.dumps(told))
        with pytest.raises(CheckpointError) as error:
            read_encoder(entry, relative_to=tiny)
        assert str(error.value) == f"{beside}: {problem}"


def test_transformers_folders_that_do_not_fit(tiny):
    entry = {"name": "c", "encoder": "encoder", "projector": "projector.safetensors"}
    config, prepare = tiny / "encoder/config.json", tiny / "encoder/preprocessor_config.json"
    whole = json.loads(config.read_text())

    def refused() -> str:
        with pytest.raises(CheckpointError) as error:
            read_encoder(entry, relative_to=tiny)
        return str(error.value)

    config.write_text(json.dumps(whole | {"model_type": "clap"}))
    assert refused().startswith(
        f"{config}: model_type 'clap' is no image encoder that can be a branch (did you mean: clip"
    )
    config.write_text(json.dumps({k: v for k, v in whole.items() if k != "vision_config"}))
    assert refused() == f"{config}: model_type 'clip' has no vision_config"
    config.write_text(json.dumps(whole | {"vision_config": whole["vision_config"] | {"num_hidden_layers": 4}}))
    assert refused() == f"{config}: num_hidden_layers is 4 but layer 3 is missing"
    config.write_text(json.dumps(whole | {"vision_config": whole["vision_config"] | {"num_hidden_layers": 2}}))
    assert refused() == f"{config}: num_hidden_layers is 2 but there are 3"
    config.write_text(json.dumps(whole))
    prepare.write_text(json.dumps({"crop_size": "large"}))
    assert refused() == f"{prepare}: crop_size is 'large', not a height and a width"
    square = {"height": 40, "width": 40}
    prepare.write_text(json.dumps({"crop_size": square, "size": {"shortest_edge": 40}}))
    assert refused() == (
        f"{prepare}: prepares images of 5x5 patches, but the encoder has 17 positions "
        "(copy it from the encoder's own repository)"
    )
    prepare.unlink()
    assert refused() == (
        f"{tiny}/encoder: holds no preprocessor_config.json, so how it wants images prepared is not known "
        "(copy it from the encoder's own repository)"
    )


@pytest.mark.parametrize(
    ("names", "placed"),
    [
        (("0", "2"), ("0", "2")), (("mm_projector.0", "mm_projector.2"), ("0", "2")),
        (("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"), ("0", "2")),
        (("model.mm_projector.0", "model.mm_projector.2", "model.mm_projector.4"), ("0", "2", "4")), (("linear",), ("0",)),
        (("mm_projector",), ("0",)), (("",), ("0",)),
    ],
)  # fmt: skip
def test_projectors_by_any_name(tiny, names, placed):
    tensors = {
        f"{name}.{kind}".lstrip("."): torch.zeros(*shape)
        for name in names
        for kind, shape in (("weight", (32, 32)), ("bias", (32,)))
    }
    save_file(tensors, tiny / "p.safetensors")
    files = read_encoder(BASE | {"projector": "p.safetensors"}, relative_to=tiny)
    found = {row.entry.name: row.name for row in files.rows if row.entry.file.name == "p.safetensors"}
    assert found == {
        f"{n}.{k}".lstrip("."): f"projector.{i}.{k}"
        for n, i in zip(names, placed, strict=True)
        for k in ("weight", "bias")
    }
    assert files.config["projector"] == [{"in": 32, "out": 32, "bias": True}] * len(names)
    assert files.config["projector_names"] == list(names)
    assert {n for n, _ in EncoderBranch(files.config).projector.named_parameters()} == {
        f"{i}.{k}" for i in placed for k in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"0.weight": (8, 32), "2.weight": (8, 9)}, "tensor '2.weight' takes 9 numbers but the layer before it gives 8"),
        ({"2.weight": (8, 32)}, "has layers 2; one is missing"),
        ({"0.weight": (8, 32), "4.weight": (8, 8)}, "has layers 0, 4; one is missing"),
        ({"0.bias": (8,)}, "tensor '0.bias' has no weight beside it"),
        ({"0.weight": (8, 32, 1)}, "tensor '0.weight' has shape [8, 32, 1], not [out, in]"),
        ({"0.weight": (8, 32), "0.bias": (9,)}, "tensor '0.bias' has shape [9], not [8]"),
        ({"weight": (8, 32), "linear_1.weight": (8, 8)}, "holds layers of two naming styles"),
        ({"weight": (8, 32), "norm.weight": (8,)}, "tensor 'norm.weight' is not of a projector that fuse knows"),
    ],
)  # fmt: skip
def test_projectors_that_are_none(tiny, tensors, problem):
    save_file({name: torch.zeros(*shape) for name, shape in tensors.items()}, tiny / "p.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_encoder(BASE | {"projector": "p.safetensors"}, relative_to=tiny)
    hint = " (`0.weight`, `0.bias`, `2.weight` ..., `linear_1.weight` ..., or one `weight`, after `mm_projector.` or nothing)"
    assert str(error.value).removesuffix(hint) == f"{tiny}/p.safetensors: {problem}"


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_integers_are_refused(tiny, dtype):
    save_file({"0.weight": torch.zeros(8, 32, dtype=dtype)}, tiny / "p.safetensors")
    stored = {torch.int8: "I8", torch.bool: "BOOL"}[dtype]
    with pytest.raises(CheckpointError) as error:
        read_encoder(BASE | {"projector": "p.safetensors"}, relative_to=tiny)
    assert str(error.value) == f"{tiny}/p.safetensors: tensor '0.weight' has dtype {stored}, not floats"
    tensors = load_file(tiny / "clip.safetensors")
    tensors["visual.conv1.weight"] = tensors["visual.conv1.weight"].to(dtype)
    save_file(tensors, tiny / "i.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_encoder(BASE | {"weights": "i.safetensors"}, relative_to=tiny)
    assert str(error.value) == f"{tiny}/i.safetensors: tensor 'visual.conv1.weight' has dtype {stored}, not floats"
