"""Tags of an image for LION's soft prompt (arXiv 2311.11860, section 3.3): words of a list, by a CLIP of open_clip.

LION's own tags come from RAM. Tags are text, so any tagger serves; this one compares an image with "a photo of a WORD."
for every word (Radford et al., arXiv 2103.00020, section 3.1) and keeps the likeliest. How many, and from which share
on, is our choice. It has been tried on random weights alone, so nothing is known of how good its tags are.

    fuse ask OUT "What is it?" --image photo.png \\
        --set lion.tags="$(python -m fuse.grafts.lion_tags ViT-B-32:openai clip.safetensors words.txt photo.png)"
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fuse import strict_json, torchvision_shim
from fuse.branches import open_clip_files
from fuse.errors import CheckpointError, FuseError, RecipeError
from fuse.images import open_image

SENTENCE = "a photo of a {}."
MOST, LEAST = 10, 0.05
_CHUNK = 256  # words that are read together


class Tagger:
    """A CLIP that knows a list of words."""

    def __init__(self, architecture: str, weights: Path, words: Sequence[str]) -> None:
        """architecture: open_clip's name, with `:TAG` where its published weights differ in how images are prepared.

        weights: one file with both towers, safetensors or a pickle of tensors, which is read as weights only. Raises
        RecipeError for an architecture that is not there or whose towers are not CLIP's own, and for an empty list;
        CheckpointError for weights that are not this architecture's.
        """
        name, _, tag = architecture.partition(":")
        self.words = list(dict.fromkeys(word.strip() for word in words if word.strip()))
        if not self.words:
            raise RecipeError("there are no words to choose tags from", hint="one word or phrase on each line")
        known = open_clip_files.architecture(name, "tags")
        way = open_clip_files.preprocessing(name, tag, known, weights, "tags")
        told = strict_json.read_object(open_clip_files._package() / "model_configs" / f"{name}.json")
        self._model, self._tokenize = _build(name, told, weights)
        torchvision_shim.install()
        from open_clip.transform import PreprocessCfg, image_transform_v2

        size = self._model.visual.image_size
        self._prepare: Any = image_transform_v2(PreprocessCfg(**{**way, "size": size}), is_train=False)
        self._known = self._read(self.words)

    def tags(self, image: Any, *, most: int = MOST, least: float = LEAST) -> list[str]:
        """The words that fit an image best, likeliest first.

        image: a PIL image. most: how many at most. least: the share of the probability over all words from which on a
        word is a tag, 0 to 1.
        """
        found = [(share, word) for share, word in zip(self.shares(image), self.words, strict=True) if share >= least]
        return [word for _, word in sorted(found, key=lambda pair: -pair[0])[:most]]

    def shares(self, image: Any) -> list[float]:
        """The probability of every word, in the order of the list: the softmax of CLIP's scores."""
        import torch

        with torch.no_grad():
            seen = self._model.encode_image(self._prepare(image)[None], normalize=True)
            scores = self._model.logit_scale.exp() * seen @ self._known.T
        return scores[0].softmax(-1).tolist()

    def _read(self, words: Sequence[str]) -> Any:
        """The words' features [n, d], normalised."""
        import torch

        texts = self._tokenize([SENTENCE.format(word) for word in words])
        with torch.no_grad():
            return torch.cat([self._model.encode_text(some, normalize=True) for some in texts.split(_CHUNK)])


def _build(name: str, told: Any, weights: Path) -> tuple[Any, Any]:
    """The model with its weights, and its tokenizer; nothing is fetched."""
    torchvision_shim.install()
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    from fuse.importers.read import open_source

    towers = {**told["vision_cfg"], **told["text_cfg"]}
    if told.get("custom_text") or any(key.startswith(("timm_model", "hf_")) for key in towers):
        raise RecipeError(f"the towers of {name} are not CLIP's own", where="tags", hint="such as ViT-B-32")
    model = CLIP(
        told["embed_dim"], told["vision_cfg"], told["text_cfg"], quick_gelu=bool(told.get("quick_gelu"))
    ).eval()
    state = open_source(weights).state
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items() if key != "attn_mask"}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if odd := next((key for key, shape in wanted.items() if found.get(key) != shape), ""):
        told_shape = f"has shape {list(found[odd])}, not {list(wanted[odd])}" if odd in found else "is missing"
        raise CheckpointError(f"is no {name}: tensor {odd!r} {told_shape}", where=weights)
    model.load_state_dict({key: state[key].float() for key in wanted}, strict=False)  # it makes attn_mask itself
    return model, SimpleTokenizer(context_length=model.context_length)


def words_of(file: Path) -> list[str]:
    """The words of a file, one on each line. Raises RecipeError where there is none."""
    if not file.is_file():
        raise RecipeError("there is no such list of words", where=file)
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


@click.command("python -m fuse.grafts.lion_tags")
@click.argument("architecture")
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("words", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--most", default=MOST, show_default=True, type=click.IntRange(1), help="How many tags at most.")
@click.option("--least", default=LEAST, show_default=True, type=click.FloatRange(0, 1), help="The least share of one.")
def command(architecture: str, weights: Path, words: Path, image: Path, most: int, least: float) -> None:
    """The tags of IMAGE among the lines of WORDS, by open_clip's ARCHITECTURE with WEIGHTS, with commas between."""
    picture = open_image(image)
    click.echo(", ".join(Tagger(architecture, weights, words_of(words)).tags(picture, most=most, least=least)))


if __name__ == "__main__":
    try:
        command(standalone_mode=False)
    except FuseError as error:
        click.echo(f"fuse: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except click.ClickException as error:
        click.echo(f"fuse: {error.format_message()}", err=True)
        raise SystemExit(2) from None
