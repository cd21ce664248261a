"""The real converter of llama.cpp on a real merge: does the GGUF hold what the folder holds, and say the same?

    python tools/gguf_real.py --converter llama.cpp/convert_hf_to_gguf.py [--work DIR]

Two fine-tunes of SmolLM2-135M (those of `make demo-text`) are merged, exported to GGUF in float32 and with the outtype
that the converter chooses, and read back: every tensor against the folder's by the `gguf` package, and the logits of a
sentence from the GGUF as transformers loads it. An Idefics3 of a tiny tower and that merge goes through `--mmproj`.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
from demo_members import write_members

SENTENCE = "The capital of France is Paris, and the capital of Italy is"
RECIPE = "base: base\nmembers: {dates: dates, extract: extract}\nlanguage: {method: task_arithmetic, weights: 0.8}\n"
EYES = "members: {eyes: eyes}\nlanguage: {method: linear, weights: {eyes: 1}}\nvision: [eyes]\n"
TOLD = ("general.architecture", "general.type")
PERMUTED = ("attn_q.weight", "attn_k.weight")  # rows in another order, for llama.cpp's rotary positions


@click.command()
@click.option("--converter", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--work", type=click.Path(path_type=Path), help="Keep what is made there.")
def main(converter: Path, work: Path | None) -> None:
    """Print what was compared, and how far apart it is."""
    from fuse import torchvision_shim

    torchvision_shim.install()
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        compare(converter, work)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(converter, Path(folder))


def compare(converter: Path, work: Path) -> None:
    from fuse.export.gguf import export_gguf
    from fuse.merge import merge
    from fuse.planner import make_plan
    from fuse.recipe_yaml import load_recipe

    write_members(work)
    for name, text in (("out", RECIPE), ("seeing", EYES)):
        if name == "seeing":
            write_eyes(work)
        (work / f"{name}.yaml").write_text(text)
        merge(make_plan(load_recipe(work / f"{name}.yaml")), work / name, force=True)
    (wide,) = export_gguf(work / "out", work / "out.gguf", converter=converter, outtype="f32", force=True)
    (chosen,) = export_gguf(work / "out", work / "gguf", converter=converter, force=True)
    for file in (wide, chosen):
        click.echo(f"{file.name}: {told(file, work / 'out')}")
    click.echo(f"logits of {wide.name} against the folder: {logits_apart(wide, work / 'out'):.2g}")
    for file in export_gguf(work / "seeing", work / "seeing-gguf", converter=converter, mmproj=True, force=True):
        click.echo(f"{file.name}: {summary(file)}")


def told(file: Path, folder: Path) -> str:
    """How far the tensors of a GGUF are from the folder's, those that lie in the same order."""
    import numpy as np
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import load_file

    weights = {k: v for part in sorted(folder.glob("*.safetensors")) for k, v in load_file(part).items()}
    found = {one.name: one for one in GGUFReader(file).tensors}
    apart, compared = 0.0, 0
    for name, mine in sorted(names(weights).items()):
        if name.endswith(PERMUTED):
            continue
        one = found[name]
        theirs = dequantize(one.data, one.tensor_type).reshape(mine.shape)
        apart = max(apart, float(np.abs(theirs - mine.to(torch.float32).numpy()).max()))
        compared += 1
    return f"{len(found)} tensors, {compared} compared, at most {apart:.2g} apart; {summary(file)}"


def names(weights: dict[str, Any]) -> dict[str, Any]:
    """Tensors of a llama by the names that a GGUF has."""
    last = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    found = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    for key, value in weights.items():
        if key.startswith("model.layers."):
            _, _, number, rest = key.split(".", 3)
            found[f"blk.{number}.{last[rest.removesuffix('.weight')]}.weight"] = value
    return found


def summary(file: Path) -> str:
    """Architecture, number of tensors and kind of a GGUF, as it says itself."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    read = [str(reader.fields[key].contents()) for key in TOLD if key in reader.fields]
    kinds = sorted({one.tensor_type.name for one in reader.tensors})
    return f"{' '.join(read)}, {len(reader.tensors)} tensors of {', '.join(kinds)}, {file.stat().st_size / 1e6:,.1f} MB"


def logits_apart(file: Path, folder: Path) -> float:
    """The largest difference of logits over SENTENCE, of the GGUF as transformers loads it and of the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(SENTENCE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)(ids).logits
    return (ours - theirs).abs().max().item()


def write_eyes(work: Path) -> None:
    """An Idefics3 of the merged language model and a random tower of two layers, with the processor that such have."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(work / "out")
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    words = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles]
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    language = AutoModelForCausalLM.from_pretrained(work / "out", dtype=torch.float32)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tower = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    text = {**language.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    config = Idefics3Config(vision_config=tower, text_config=text, scale_factor=2, image_token_id=len(tokenizer) - 8)
    model = Idefics3ForConditionalGeneration(config)
    model.model.text_model.load_state_dict(language.model.state_dict())
    model.save_pretrained(work / "eyes")
    images = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    Idefics3Processor(images, tokenizer, image_seq_len=4).save_pretrained(work / "eyes")


if __name__ == "__main__":
    main()
