"""Trains a modular visual memory (MKS2, arXiv 2311.15759) on a language model of the zoo, and writes it as donors.

    python tools/train_mvm.py build/memory --host recipes/zoo/base --eyes recipes/zoo/hue --seed 0

Its authors published no weights, so this makes some that can be grafted: stage 1 of the paper fills the memories from
pictures and captions, stage 2 trains the soft mixture. Written are

    OUT/memory/graft.json ...     the memories, to be added (or to stand in for the MLP, with --place instead)
    OUT/mixture/graft.json ...    the same memories with trained routers and the low-rank changes of both experts
    OUT/linear.safetensors        the image linear, projector of a branch
    OUT/eyes                      the vision tower, a folder for `encoder:`
    OUT/memory.json               what was measured while it was trained

One thread; the same seed gives the same files on the same machine.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mvm_stages import Pupil

SIGHTS = ("hue", "form", "sign")


def write_donor(graft: Any, folder: Path, host: Path, told: str) -> None:
    """The donor folder of a graft, in bfloat16. host: the folder it was trained on. told: the command that made it."""
    import torch
    from safetensors.torch import save_file

    from fuse.anatomy import open_member
    from fuse.grafts.basis import host_of
    from fuse.grafts.donor import FORMAT, JSON, WEIGHTS
    from fuse.small_files import write_json

    folder.mkdir(parents=True, exist_ok=True)
    small = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in sorted(graft.state_dict().items())}
    save_file(small, folder / WEIGHTS, metadata={"format": "pt"})
    record = host_of(open_member(host.name, str(host), revision=None, relative_to=Path()))
    source = {"file": "", "sha256": "", "tool": told}
    write_json(
        folder / JSON, {"format": FORMAT, "kind": "mks2", "config": graft.config, "host": record, "source": source}
    )


def eyes_folder(pupil: "Pupil", out: Path) -> None:
    """The tower and its image processor as `encoder:` takes them, and the image linear as `projector:` does."""
    import torch
    from safetensors.torch import save_file
    from zoo_files import processor

    pupil.tower.to(torch.bfloat16).save_pretrained(out / "eyes")
    processor(pupil.sight).image_processor.save_pretrained(out / "eyes")
    linear = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in pupil.linear.state_dict().items()}
    save_file(linear, out / "linear.safetensors", metadata={"format": "pt"})


def load_pupil(host: Path, eyes: Path, sight: str, seed: int, **how: Any) -> "Pupil":
    """A language model of the zoo with the eyes of a member, and empty memories. how: for `new_pupil`."""
    import torch
    import zoo_tower
    from mvm_stages import new_pupil
    from zoo_base import LlamaForCausalLM
    from zoo_members import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    language = LlamaForCausalLM.from_pretrained(host, dtype=torch.float32).eval()
    member: Any = LlavaForConditionalGeneration.from_pretrained(eyes, dtype=torch.float32).eval()
    return new_pupil(language, member.model.vision_tower, getattr(zoo_tower, sight.upper()), **how)


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--host", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--eyes", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sight", type=click.Choice(SIGHTS), default="hue", show_default=True, help="What the eyes see.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--inner", type=click.IntRange(1, 512), default=32, show_default=True, help="Units of a memory.")
@click.option("--place", type=click.Choice(["beside", "instead"]), default="beside", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=1500, show_default=True, help="Of stage 1.")
@click.option("--mixing", type=click.IntRange(0), default=800, show_default=True, help="Steps of stage 2; 0 for none.")
@click.option("--rank", type=click.IntRange(0, 64), default=4, show_default=True, help="Of the low-rank changes.")
@click.option("--control", is_flag=True, help="Train the image linear alone, without memories; no donor is written.")
def main(out: Path, host: Path, eyes: Path, sight: str, seed: int, inner: int, place: str, steps: int, mixing: int,
         rank: int, control: bool) -> None:  # fmt: skip
    """Train a memory on the llama HOST with the vision tower of EYES, and write it under OUT."""
    import torch
    from mvm_stages import mix, store, with_mixture

    torch.set_num_threads(1)
    began = time.monotonic()
    told = f"tools/train_mvm.py --host {host.name} --eyes {eyes.name} --sight {sight} --seed {seed} --inner {inner} "
    told += f"--place {place} --steps {steps} --mixing {mixing} --rank {rank}"
    pupil = load_pupil(host, eyes, sight, seed, inner=inner, place=place)
    told += " --control" * control
    stored = store(pupil, seed, steps=steps, alone=control, say=click.echo)
    report: dict[str, Any] = {"command": told, "stage 1": stored}
    out.mkdir(parents=True, exist_ok=True)
    if not control:
        write_donor(pupil.graft, out / "memory", host, told)
    if mixing and not control:
        pupil = with_mixture(pupil, rank)
        report["stage 2"] = mix(pupil, seed, steps=mixing, say=click.echo)
        write_donor(pupil.graft, out / "mixture", host, told)
    eyes_folder(pupil, out)
    (out / "memory.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{json.dumps(report)}\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
