"""What a projector over a bridge shows: the eyes of the zoo's `hue` for other language models than its own.

    python tools/projector_evidence.py build/eyes

`hue` is taken apart into its language model, its CLIP and its projector. With these eyes are asked, about pictures,

    own              its own language model: what `hue` answers
    own turned       the same in other orthogonal axes, the same function of words
    base             the base that it was trained on, which never saw a picture
    base turned      the same in other axes
    apart            the language model of `stranger`, which grew from other weights and sees through eyes of its own

and each of those in another basis without a bridge, and over every kind of map between embeddings.
"""

from collections.abc import Mapping
from pathlib import Path

import click
from bridge_evidence import turned
from evidence import ZOO
from zoo_questions import write_questions
from zoo_world import SPECIAL, VOCABULARY

SKILLS = ("count", "presence", "color")
METHODS = ("embedding", "ridge")


def language_of(member: Path, out: Path) -> Path:
    """The language model of a LLaVA of the zoo, as a folder of its own."""
    from transformers import AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration

    whole = LlavaForConditionalGeneration.from_pretrained(member)
    alone = LlamaForCausalLM(whole.config.text_config)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    alone.save_pretrained(out)
    AutoTokenizer.from_pretrained(member).save_pretrained(out)
    return out


def eyes_of(member: Path, out: Path) -> tuple[Path, Path]:
    """(CLIP as a folder, projector as a file) of a LLaVA of the zoo."""
    from safetensors.torch import save_file
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    whole = LlavaForConditionalGeneration.from_pretrained(member)
    whole.model.vision_tower.save_pretrained(out / "clip")
    AutoProcessor.from_pretrained(member).image_processor.save_pretrained(out / "clip")
    state = whole.model.multi_modal_projector.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / "projector.safetensors")
    return out / "clip", out / "projector.safetensors"


def rows(own: Path, base: Path, others: Mapping[str, Path]) -> dict[str, tuple[Path, str]]:
    """label -> (the language model, the bridge of its eyes; "" for none)."""
    found = {"own": (own, ""), "base": (base, "")}
    for name, host in others.items():
        found[f"{name}, no bridge"] = (host, "")
        for method in METHODS:
            texts = "" if method == "embedding" else ", texts: texts.txt"
            found[f"{name}, {method}"] = (host, f", accept_r2: -100, bridge: {{method: {method}{texts}, host: {own}}}")
    return found


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--zoo", type=click.Path(file_okay=False, exists=True, path_type=Path), default=ZOO, show_default=True)
@click.option("--each", type=int, default=100, show_default=True, help="Questions of every skill.")
def main(out: Path, zoo: Path, each: int) -> None:
    """Take `hue` apart, merge every row and ask all of them the same questions."""
    from fuse.cli import cli

    out.mkdir(parents=True, exist_ok=True)
    own = language_of(zoo / "hue", out / "own").resolve()
    clip, projector = eyes_of(zoo / "hue", out)
    others = {
        "own turned": turned(own, out / "own_turned").resolve(),
        "base turned": turned(zoo / "base", out / "base_turned").resolve(),
        "apart": language_of(zoo / "stranger", out / "apart").resolve(),
    }
    words = VOCABULARY[len(SPECIAL) :]
    (out / "texts.txt").write_text("\n".join(" ".join(words[i::5]) for i in range(5)) + "\n", encoding="utf-8")
    questions = write_questions(out / "questions", "test", each, SKILLS)
    folders = []
    for label, (model, bridge) in rows(own, (zoo / "base").resolve(), others).items():
        name = label.replace(",", "").replace(" ", "_") + "_fused"
        file = out / f"{name}.yaml"
        eyes = f"{{name: hue, encoder: {clip.resolve()}, projector: {projector.resolve()}{bridge}}}"
        file.write_text(
            f"members: {{llm: {model}}}\nlanguage: {{method: linear, weights: {{llm: 1}}}}\nvision: [{eyes}]\n",
            encoding="utf-8",
        )
        cli.main(["merge", str(file), str(out / name), "--quiet", "--force"], standalone_mode=False)
        folders.append(str(out / name))
    cli.main(["eval", *folders, "--data", str(questions), "--max-tokens", "4"], standalone_mode=False)


if __name__ == "__main__":
    main()
