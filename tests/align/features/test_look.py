"""Features of vision encoders: against transformers' own hidden states, tiles and windows in place, pooling, files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from fuse.align.features.blocks import Map, chosen_layers
from fuse.align.features.images import Skipped, image_files, read_batches
from fuse.align.features.llm import language_states
from fuse.align.features.look import layers_that_run, look
from fuse.align.features.open import open_encoders
from fuse.align.features.pool import box_weights, grid_of, pool
from fuse.branches.mgm import MgmBranch
from fuse.branches.places import grid_boxes
from fuse.branches.slime import SlimeBranch
from fuse.errors import CheckpointError, RecipeError
from tests import fused_members, layouts, tiny_encoders, tiny_processors, tiny_vlm
from tests.cli import fuse_here
from tests.original_branches import seeded, slime
from tests.test_branch_mgm import mgm
from tests.test_branch_towers import OFFICIAL, clip_folder, convnext_folder, original, outside
from tests.tiny_vlm import CONFIGS


def looked(encoder, layers, images, words):
    return look(encoder, layers, [encoder.prepare(image) for image in images], words)


NO_WORDS = torch.zeros(0, dtype=torch.long)


def pictures(count: int = 3, size: tuple[int, int] = (60, 60), seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8), "RGB") for _ in range(count)
    ]


def member(kind: str, folder: Path) -> tuple[torch.nn.Module, list]:
    model = tiny_vlm.build(kind)
    tiny_processors.save(model, folder)
    return model, open_encoders(str(folder))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["llava", "paligemma", "gemma3"])
def test_native_members_give_the_hidden_states_and_image_features_of_transformers(tmp_path, kind):
    model, (encoder,) = member(kind, tmp_path)
    images = pictures()
    found = looked(encoder, [0, 1], images, NO_WORDS)
    pixels = torch.cat([encoder.prepare(image).inputs["pixel_values"] for image in images])
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[1:]
        tokens = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    skip = 1 if kind == "llava" else 0  # CLIP's class token
    for i in range(len(images)):
        for layer in (0, 1):
            assert found.layers[layer][i].grid == (2, 2)
            close(found.layers[layer][i].tokens, states[layer][i, skip:])
        close(found.projected[i].tokens, tokens[i])
        assert found.projected[i].grid == (2, 2)


@pytest.mark.parametrize("kind", list(tiny_processors.PROCESSORS))
def test_images_of_any_size_in_a_batch_are_seen_as_alone(tmp_path, kind):
    _, (encoder,) = member(kind, tmp_path)
    images = [*pictures(2), *pictures(1, (112, 56)), *pictures(1, seed=5)]
    count = layers_that_run(encoder, encoder.prepare(images[0]), NO_WORDS)
    assert count == 2
    together = looked(encoder, [0, 1], images, NO_WORDS)
    for i, image in enumerate(images):
        alone = looked(encoder, [0, 1], [image], NO_WORDS)
        for found, layer in zip(together.layers, alone.layers, strict=True):
            assert found[i].grid == layer[0].grid is not None
            close(found[i].tokens, layer[0].tokens)
        close(together.projected[i].tokens, alone.projected[0].tokens)
        assert grid_of(together.projected[i]) is not None


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2_with_registers", "blip-2", "beit"])
def test_bare_encoders_give_the_hidden_states_of_transformers(tmp_path, kind):
    model = tiny_encoders.write_transformers(kind, tmp_path)
    (encoder,) = open_encoders(str(tmp_path))
    images = pictures()
    found = looked(encoder, [0, 1, 2], images, NO_WORDS)
    pixels = torch.stack([encoder.prepare(image) for image in images])
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states[1:]
    for layer, maps in enumerate(found.layers):
        for i, one in enumerate(maps):
            assert one.grid == (4, 4)
            close(one.tokens, states[layer][i, -16:])
    assert found.projected is None and not encoder.projects and encoder.host is None


def test_stages_are_maps_of_their_own_size(tmp_path):
    model = tiny_encoders.write_transformers("convnext", tmp_path)
    (encoder,) = open_encoders(str(tmp_path))
    image = pictures(1)
    found = looked(encoder, [0, 3], image, NO_WORDS)
    with torch.no_grad():
        states = model(encoder.prepare(image[0])[None], output_hidden_states=True).hidden_states[1:]
    assert [maps[0].grid for maps in found.layers] == [(16, 16), (2, 2)]
    for maps, state in zip(found.layers, (states[0], states[3]), strict=True):
        close(maps[0].tokens, state[0].flatten(1).T)


def test_timm_and_open_clip_encoders_by_file(tmp_path, installed):
    visual = tiny_encoders.whole_clip("plain", tmp_path)
    (encoder,) = open_encoders(f"open_clip:plain={tmp_path / 'clip.safetensors'}")
    image = pictures(1)[0]
    found = looked(encoder, [0, 2], [image], NO_WORDS)
    with torch.no_grad():
        states = visual.forward_intermediates(encoder.prepare(image)[None], output_fmt="NLC")["image_intermediates"]
    for maps, state in zip(found.layers, (states[0], states[2]), strict=True):
        assert maps[0].grid == (4, 4)
        close(maps[0].tokens, state[0])


def test_tiled_members_are_read_at_the_view_of_the_whole_picture(tmp_path):
    for kind, whole in (("internvl", -1), ("llava_next", 0)):
        model, (encoder,) = member(kind, tmp_path / kind)
        image = pictures(1, (112, 56))[0]
        found = looked(encoder, [1], [image], NO_WORDS)
        views = encoder.prepare(image).inputs["pixel_values"].flatten(0, -4)
        assert len(views) > 1
        with torch.no_grad():
            state = model.model.vision_tower(views[whole][None], output_hidden_states=True).hidden_states[2]
        close(found.layers[0][0].tokens, state[0, 1:])


def test_windows_of_qwen_are_put_back_in_raster_order(tmp_path):
    """Behind the last block the merged patches are what the tower's merger makes the tokens of, cell by cell."""
    changes = {**CONFIGS["qwen2_5_vl"]["vision_config"], "window_size": 56}
    model = tiny_vlm.build_from("qwen2_5_vl", {"vision_config": changes})
    tiny_processors.save(model, tmp_path)
    (encoder,) = open_encoders(str(tmp_path))
    image = pictures(1, (168, 112))[0]  # 12 x 8 patches, 6 x 4 cells, in windows of 2 x 2 cells
    caught = []
    tower = encoder.module.visual
    handle = tower.merger.register_forward_hook(lambda module, args, out: caught.append((args[0], out)))
    found = looked(encoder, [1], [image], NO_WORDS)
    handle.remove()
    given, made = caught[0]
    one, tokens = found.layers[0][0], found.projected[0].tokens
    assert one.grid == found.projected[0].grid and min(one.grid) > 2
    order = [int((tokens - row).abs().sum(1).argmin()) for row in made]  # where each of the merger's tokens came to be
    assert sorted(order) == list(range(len(tokens))) and order != sorted(order)
    for cell, patches in zip(order, given.unflatten(0, (-1, 4)), strict=True):
        close(one.tokens[cell], patches.mean(0))


def test_branches_of_a_fused_folder_are_its_members_encoders(tmp_path):
    for kind, seed in (("llava", 1), ("idefics3", 2)):
        fused_members.save(kind, tmp_path / kind, seed)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "members: {llava: llava, idefics3: idefics3}\nlanguage: {method: linear, weights: {llava: 1}}\n"
        "vision: [llava, {from: idefics3, max_tokens: 2}]\n"
    )
    ran = fuse_here("merge", recipe, tmp_path / "fused")
    assert ran.code == 0, ran.err
    branches = open_encoders(f"{tmp_path / 'fused'}/")
    assert [one.name for one in branches] == [f"{tmp_path / 'fused'}/llava", f"{tmp_path / 'fused'}/idefics3"]
    images = pictures(2)
    for branch in branches:
        (alone,) = open_encoders(str(tmp_path / branch.branch["name"]))
        one, other = (looked(encoder, [0, 1], images, NO_WORDS) for encoder in (branch, alone))
        for i in range(2):
            assert torch.equal(one.layers[1][i].tokens, other.layers[1][i].tokens)
            assert torch.equal(one.projected[i].tokens, other.projected[i].tokens)  # before any budget
        assert branch.words is not None and branch.embed(torch.tensor([5])).shape == (1, 32)


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_language_states_are_the_means_of_visual_tokens_behind_each_block(tmp_path, kind):
    model, _ = member(kind, tmp_path / "m")
    files = []
    for i, image in enumerate([*pictures(2), *pictures(1, (112, 56))]):
        files.append(tmp_path / f"{i}.png")
        image.save(files[-1])
    seen = []
    found = language_states(tmp_path / "m", files, ["w7 w8", "w9"], batch=2, done=seen.append)[""]
    assert found.shape == (2, 3, 32) and sum(seen) == 3
    from fuse.ask import inputs_of, load

    answerer = load(tmp_path / "m")
    for i, file in enumerate(files):
        inputs = inputs_of(answerer, ("w7 w8", "w9")[i % 2], (file,))
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        visual = inputs["input_ids"][0] == 90
        close(found[0, i], states[1][0, visual].mean(0))  # behind the last block transformers gives the normed state


def test_pooling_by_boxes_is_pooling_by_grid():
    tokens = torch.randn(24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_grid = pool([Map(tokens, (4, 6))], (3, 4))
    by_boxes = pool([Map(tokens, None, grid_boxes(4, 6))], (3, 4))
    np.testing.assert_allclose(by_boxes, by_grid, atol=1e-6)
    assert grid_of(Map(tokens, None, grid_boxes(4, 6))) == (4, 6)
    np.testing.assert_allclose(pool([Map(tokens, None)], None)[0, 0], tokens.mean(0), atol=1e-6)
    np.testing.assert_allclose(pool([Map(tokens, None)], (2, 2))[0, 3], tokens.mean(0), atol=1e-6)


def test_cells_that_no_box_reaches_take_the_nearest_token_and_line_breaks_none():
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(box_weights(boxes, (2, 2)), [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    assert grid_of(Map(torch.zeros(3, 2), None, boxes)) == (2, 2)
    assert grid_of(Map(torch.zeros(3, 2), None, np.zeros((3, 4)))) is None


def test_which_layers_are_read():
    assert chosen_layers(4, None, 12, "a") == [0, 1, 2, 3]
    assert chosen_layers(24, None, 12, "a") == [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]
    assert chosen_layers(6, (-1, 0, 5), 12, "a") == [0, 5]
    with pytest.raises(RecipeError) as error:
        chosen_layers(6, (6,), 12, "a")
    assert str(error.value) == "a: has 6 layers, and no layer 6 (--layers takes 0 to 5, or -1 for the last)"


def test_images_of_a_folder_and_what_is_skipped(tmp_path):
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    for name in ("2.png", "b/1.JPG", "1.webp"):
        pictures(1)[0].save(folder / name, format={"G": "JPEG"}.get(name[-1]))
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    (folder / "3.png").write_text("no picture")
    files = image_files(folder)
    assert [str(file.relative_to(folder)) for file in files] == ["1.webp", "2.png", "3.png", "b/1.JPG"]
    skipped, passed = Skipped(), []
    batches = list(read_batches(files, folder, 2, lambda image: image.size, skipped, passed.append))
    assert batches == [[(60, 60)] * 2, [(60, 60)]]
    assert skipped.why == {"3.png": "is not an image that fuse can read"} and sum(passed) == 4
    with pytest.raises(RecipeError) as error:
        list(read_batches(files, folder, 2, lambda image: image, None, passed.append))
    assert str(error.value) == f"{folder}/3.png: is not an image that fuse can read (--skip-bad leaves it out)"
    with pytest.raises(RecipeError) as error:
        image_files(folder / "b" / "c")
    assert str(error.value) == f"{folder}/b/c: there is no such folder"
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError) as error:
        image_files(tmp_path / "empty")
    assert str(error.value) == f"{tmp_path}/empty: holds no images (PNG, JPEG, WebP, GIF, BMP and TIFF are read)"


def test_an_image_encoder_alone_is_auto_model_s(tmp_path):
    """Old names of a checkpoint are transformers' to translate."""
    tiny_encoders.write_transformers("dinov2", tmp_path)
    (encoder,) = open_encoders(str(tmp_path))
    own = AutoModel.from_pretrained(tmp_path).eval()
    image = pictures(1)[0]
    with torch.no_grad():
        state = own(encoder.prepare(image)[None], output_hidden_states=True).hidden_states[3]
    close(looked(encoder, [2], [image], NO_WORDS).layers[0][0].tokens, state[0, 1:])


def test_members_in_the_layouts_of_their_authors_code(tmp_path):
    """MGM and SliME: the tokens are those of the branch, the layers those of the tower up to the one that is read."""
    settings = {"hidden_size": 32}
    clip_folder(tmp_path / "clip")
    convnext_folder(tmp_path / "convnext")
    made = {"mgm": (seeded(MgmBranch(mgm(**settings)), 1), mgm(**settings)), "slime": (None, slime(**settings))}
    made["slime"] = (seeded(SlimeBranch(made["slime"][1]), 2), made["slime"][1])
    towers = {"mm_vision_tower": "clip", "mm_vision_tower_aux": "convnext"}
    original(tmp_path / "mgm", *made["mgm"], outside, **towers)
    original(tmp_path / "slime", *made["slime"], outside, names={**OFFICIAL, "sampler.": "model.sampler."},
             model_type="llava_llama", mm_vision_tower="clip")  # fmt: skip
    words = torch.tensor([7, 8])
    for name, (branch, _) in made.items():
        stored = load_file(tmp_path / name / "model.safetensors")
        language = {key: torch.randn(shape) for key, shape in layouts.llama_shapes().items()}
        layouts.write_tensors({**stored, **language}, tmp_path / name)
        tiny_processors.tokenizer("llava").save_pretrained(tmp_path / name)
        (encoder,) = open_encoders(str(tmp_path / name))
        images = pictures(2, (112, 60))
        count = layers_that_run(encoder, encoder.prepare(images[0]), words)
        found = looked(encoder, range(count), images, words)
        prepared = [encoder.prepare(image) for image in images]
        inputs = {key: [one.inputs[key] for one in prepared] for key in prepared[0].inputs}
        branch.load_state_dict(encoder.module.state_dict())
        with torch.no_grad():
            seen = branch(inputs, text=[words] * 2, embed=encoder.embed, attention=False)
            views = torch.cat(inputs["pixel_values"])
            states = encoder.module.vision_tower(views, output_hidden_states=True).hidden_states[1:]
        for i in range(2):
            assert torch.equal(found.projected[i].tokens, seen[i].tokens)
            whole = states[count - 1].unflatten(0, (2, -1))[i, encoder.whole_view, 1:]
            close(found.layers[-1][i].tokens, whole)
    shutil.rmtree(tmp_path / "clip")
    with pytest.raises(CheckpointError) as error:
        open_encoders(str(tmp_path / "slime"))
    assert str(error.value) == (
        f"{tmp_path}/slime/config.json: mm_vision_tower is 'clip', and clip does not open: 'clip' does not exist (its "
        "towers are looked for beside the member and on the hub)"
    )
