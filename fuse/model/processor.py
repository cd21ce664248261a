"""Text and images in, a batch for the fused model out."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save

from fuse.branches.branch import Prepared
from fuse.branches.budget import budgeted_layout
from fuse.branches.kinds import open_eyes
from fuse.branches.native_table import NATIVE
from fuse.class_names import list_names
from fuse.errors import CheckpointError, RecipeError
from fuse.grafts.asking import slots_behind
from fuse.model.batches import deal, padded
from fuse.model.config import FusedConfig
from fuse.model.messages import images_in, takes_lists, with_images, with_plain_text, with_slots
from fuse.model.options import checked_options
from fuse.model.served import ServedMixin, kinds_of
from fuse.model.writing import Layout, branch_inputs, graft_slots, write
from fuse.small_files import COPIED, write_json

BRANCH_FILES = "branches"
PIECEWISE_HOSTS = frozenset({"llava_original", "mgm", "slime"})  # their code tokenizes the text around images in pieces


class FusedProcessor(ServedMixin, ProcessorMixin):
    """The tokenizer of the host and the eyes of every branch.

    Where the prompt has the image token, it gets every branch's rendering of that image, one after another, each behind
    its branch's separator where it has one.
    """

    def __init__(
        self, tokenizer: Any, config: FusedConfig | None = None, eyes: Sequence[Any] = (), folder: Path | None = None,
        chat_template: str | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.eyes, self.folder = tokenizer, tuple(eyes), folder
        self.fused = config if config is not None else FusedConfig()
        template: Any = chat_template or tokenizer.chat_template
        self.chat_template = template
        self.image_token = self.fused.image_token
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "FusedProcessor":  # pyright: ignore
        """Open the processor of a fused folder, or of a fused repository on the hub.

        Raises CheckpointError when a file that a branch needs is missing or broken.
        """
        list_names()
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            patterns = ["*.json", "*.jinja", "*.txt", "*.model"]
            keep = {k: kwargs[k] for k in ("revision", "cache_dir", "local_files_only", "token") if k in kwargs}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), allow_patterns=patterns, **keep))
        told, _ = FusedConfig.get_config_dict(folder)
        if told.get("model_type") != "fuse":
            raise CheckpointError(f"config.json has model_type {told.get('model_type')!r}, not 'fuse'", where=folder)
        config = FusedConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        eyes = [open_eyes(branch, folder / BRANCH_FILES / branch["name"]) for branch in config.branches]
        template = folder / "chat_template.jinja"
        text = template.read_text(encoding="utf-8") if template.is_file() else None
        return cls(tokenizer, config, eyes, folder, text)

    def save_pretrained(self, save_directory: Any, *_: Any, **__: Any) -> list[str]:
        """Write tokenizer, template and the files of every branch, and the config where the folder has none."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(target)
        if self.chat_template:
            (target / "chat_template.jinja").write_text(str(self.chat_template), encoding="utf-8")
        told: dict[str, Any] = {"processor_class": type(self).__name__}
        if self._auto_class is not None:  # code of a folder: it goes along, and the folder says so
            custom_object_save(self, target, config=told)
        write_json(target / "processor_config.json", told)
        if not (target / "config.json").exists():
            self.fused.save_pretrained(target)
        for branch in self.fused.branches:
            place = Path(BRANCH_FILES) / branch["name"]
            if self.folder is not None and (self.folder / place).is_dir() and not target.samefile(self.folder):
                (target / place).mkdir(parents=True, exist_ok=True)
                for name in (*COPIED, "config.json"):
                    if (self.folder / place / name).is_file():
                        shutil.copyfile(self.folder / place / name, target / place / name)
        return [str(file) for file in sorted(target.rglob("*")) if file.is_file()]

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:  # pyright: ignore
        """Tokenize prompts and prepare their images.

        text: one prompt or a list; each holds the image token once for every image of its. images: one image, a list,
        or a list of lists by prompt. Of a tokenizer's options there are add_special_tokens, padding_side, and
        padding="max_length" with max_length. Returns input_ids and attention_mask [B, L], padded on the left, the
        inputs of every branch, and with return_mm_token_type_ids what `kinds_of` tells. Raises RecipeError when images
        and image tokens do not agree, when the context is too short, and for options that would be lost.
        """
        options = checked_options(kwargs)
        if videos:
            raise RecipeError("video is not supported", hint="give still images")
        prompts = [text] if isinstance(text, str) else list(text or [])
        if not prompts:
            raise RecipeError("there is no text", hint="give a prompt for every row of the batch")
        for branch in self.fused.branches:
            if any(branch["token"] in prompt for prompt in prompts):
                told = f"the text holds {branch['token']!r}, which is a placeholder of the model"
                raise RecipeError(told, hint=f"write {self.image_token!r} for an image")
        by_prompt = deal(images, prompts, self.image_token)
        special = options.get("add_special_tokens", True)
        rows = [self._ids(prompt, special) for prompt in prompts]
        prepared = [[self._prepare(image) for image in some] for some in by_prompt]
        branches = self.fused.branches
        behind = graft_slots(self.fused.grafts)
        bare = rows
        rows = [write(ids, some, branches, self._marker, behind) for ids, some in zip(bare, prepared, strict=True)]
        self._check_context(rows)
        batch = padded(rows, self.tokenizer, options.get("padding_side"), options.get("length"))
        if options.get("return_mm_token_type_ids"):
            blocks = [[len(self._block(one)) for one in some] for some in prepared]
            batch["mm_token_type_ids"] = kinds_of(batch["attention_mask"], bare, blocks, self.image_token_id)
        return BatchFeature({**batch, **branch_inputs([one for some in prepared for one in some], branches)})

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:  # pyright: ignore
        """The prompt of a conversation, or of several; with tokenize=True the batch for the model.

        Messages hold {"type": "image"} (with the picture under `image`, `path` or `url` when tokenize=True: a local
        file, or one that its `data:` address brings along) and {"type": "text", "text": ...}. Templates written for
        plain strings get the image token in front of the text.
        """
        template: Any = chat_template or self.chat_template
        if not template:
            raise RecipeError("the folder has no chat template", hint="recipe: `prompt: {template: MEMBER}`")
        several = bool(conversation) and not isinstance(conversation[0], dict)
        tokenize, _ = kwargs.pop("tokenize", False), kwargs.pop("return_dict", None)
        kwargs.pop("return_tensors", None)
        pictures = [images_in(one) for one in (conversation if several else [conversation])]
        plainer = [
            with_slots(with_images(one), partial(slots_behind, self.fused.grafts), self.image_token)
            for one in (conversation if several else [conversation])
        ]
        conversation = plainer if several else plainer[0]
        if not takes_lists(self.tokenizer, template, self.image_token):
            plain = [with_plain_text(one, self.image_token) for one in (conversation if several else [conversation])]
            conversation = plain if several else plain[0]
        prompt = self.tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, **kwargs)
        if not tokenize:
            return prompt
        prompts = prompt if several else [prompt]
        return self(images=pictures, text=prompts, add_special_tokens=False)

    def to_dict(self) -> dict[str, Any]:
        return {"processor_class": type(self).__name__}

    def __repr__(self) -> str:
        branches = ", ".join(branch["name"] for branch in self.fused.branches)
        return f"{type(self).__name__}(branches: {branches}; image token {self.image_token!r}; {self.tokenizer!r})"

    @property
    def image_token_id(self) -> int | None:
        """The first branch's placeholder: what stands where a prompt holds an image."""
        return self.fused.placeholder_ids[0] if self.fused.branches else None

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask"]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def _ids(self, prompt: str, special: bool) -> list[int]:
        """The prompt's ids with the first branch's placeholder at every image."""
        special = special and not self._begins(prompt)
        if not self.fused.branches:
            return self.tokenizer(prompt, add_special_tokens=special)["input_ids"]
        first = self.fused.branches[0]
        if self.fused.host_type not in PIECEWISE_HOSTS:
            text = prompt.replace(self.image_token, first["token"])
            return self.tokenizer(text, add_special_tokens=special)["input_ids"]
        ids: list[int] = []
        for number, piece in enumerate(prompt.split(self.image_token)):
            ids += [first["token_id"]] if number else []
            ids += self.tokenizer(piece, add_special_tokens=special and number == 0)["input_ids"]
        return ids

    def _begins(self, prompt: str) -> bool:
        begin = self.tokenizer.bos_token
        return bool(begin) and prompt.startswith(begin)

    def look(self, image: Image.Image) -> list[Prepared]:
        """The image through every branch's eyes, in the order of the branches, before any budget."""
        mine = getattr(NATIVE.get(self.fused.host_type), "around", None)
        found = []
        for branch, eyes in zip(self.fused.branches, self.eyes, strict=True):
            if branch["kind"] == "native":
                around = NATIVE[branch["config"]["model_type"]].around
                found.append(eyes.prepare(image, guest=around != mine))
            else:
                found.append(eyes.prepare(image))
        return found

    def _prepare(self, image: Image.Image) -> list[tuple[Prepared, Layout]]:
        """What each branch makes of the image, with its layout within the branch's budget."""
        budgets = [branch.get("max_tokens") for branch in self.fused.branches]
        return [(one, budgeted_layout(one.layout, n)) for one, n in zip(self.look(image), budgets, strict=True)]

    def _marker(self, token: str, branch: Mapping[str, Any]) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or self.tokenizer.convert_ids_to_tokens(found) != token:
            raise CheckpointError(
                f"branch {branch['name']!r} writes the marker {token!r}, which the tokenizer does not have",
                where=self.folder or "", hint="language: {embeddings: union} adds the tokens that only guests have",
            )  # fmt: skip
        return found

    def _check_context(self, rows: list[list[int]]) -> None:
        limit = getattr(self.fused.text_config, "max_position_embeddings", None)
        placeholders = set(self.fused.placeholder_ids)
        for number, ids in enumerate(rows, 1):
            if limit and len(ids) > limit:
                visual = sum(token in placeholders for token in ids)
                raise RecipeError(
                    f"prompt {number} has {len(ids)} tokens, {visual} of them visual, and the context is {limit}",
                    hint="fewer or smaller images, or `max_tokens` on a branch of the recipe",
                )
