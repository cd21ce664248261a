"""The readers under test, each with its inputs and an oracle for what it accepts.

Each has `inputs` (a strategy of bytes), `read` (bytes -> value, or a FuseError) and `agrees` (bytes, value -> what is
wrong with the value, or "").
"""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fuzz_documents import anything, changed, changes, documents, numbers, text_of, torn
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from safetensors import SafetensorError, deserialize

from fuse import anatomy, vocabulary
from fuse.anatomy import open_member
from fuse.checkpoint import read_tensors
from fuse.recipe import Recipe
from fuse.recipe_yaml import load_recipe
from fuse.safetensors_header import DTYPE_BYTES, parse_header

RECIPES = Path(__file__).parent.parent / "recipes"
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


@dataclass(frozen=True)
class Reader:
    inputs: st.SearchStrategy[bytes]
    read: Callable[[bytes], Any]
    agrees: Callable[[bytes, Any], str]


def readers(folder: Path) -> dict[str, Reader]:
    """All readers; what they read from files lies in the folder, which is theirs."""
    return {
        "header": Reader(headers, _header, _as_safetensors),
        "index": Reader(indexes, partial(_index, _shards(folder / "index")), _as_json),
        "recipe": Reader(recipes, partial(_recipe, folder / "recipe.yaml"), _as_ruamel),
        "config": Reader(configs, partial(_config, _members(folder)), _all_placed),
        "tokenizer": Reader(tokenizers, partial(_tokenizer, _empty(folder / "tokenizer")), _one_row_each),
    }  # fmt: skip


def packed(entries: Any, body: bytes = b"") -> bytes:
    """A file of a header, which may be anything, and a body."""
    data = text_of(entries)
    return struct.pack("<Q", len(data)) + data + body


@st.composite
def _near_headers(draw: st.DrawFn) -> bytes:
    rows = draw(
        st.lists(st.tuples(st.sampled_from(list(DTYPE_BYTES)), st.lists(st.integers(0, 4), max_size=3)), max_size=4)
    )
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}} if draw(st.booleans()) else {}
    at = 0
    for number, (dtype, shape) in enumerate(rows):
        size = DTYPE_BYTES[dtype]
        for n in shape:
            size *= n
        entries[f"model.layers.{number}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    value = changed(entries, draw(changes))
    return torn(packed(value, bytes(n % 251 for n in range(at))), draw(changes))


headers = st.one_of(_near_headers(), _near_headers(), _near_headers(), _near_headers(), anything,
                    anything.map(lambda data: struct.pack("<Q", len(data)) + data))  # fmt: skip
indexes = documents(st.just({"metadata": {"total_size": 16}, "weight_map": SHARDS}))
_texts = [file.read_bytes() for file in sorted(RECIPES.glob("*.yaml"))]
_values = [YAML(typ="safe", pure=True).load(text) for text in _texts]
recipes = st.one_of(
    st.builds(torn, st.sampled_from(_texts), changes), documents(st.sampled_from(_values)),
    documents(st.sampled_from(_values)), anything,
)  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 8,
    "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 4, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "float32", "max_position_embeddings": 64,
}  # fmt: skip
_zoo = {name: json.loads((RECIPES / "zoo" / name / "config.json").read_bytes()) for name in ("base", "sign")}
_MEMBERS = {"llama": LLAMA, **_zoo}
configs = st.sampled_from(list(_MEMBERS)).flatmap(
    lambda name: documents(st.just(_MEMBERS[name])).map(lambda data: name.encode() + b"\n" + data)
)
FAST = {
    "version": "1.0", "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2}, "merges": []},
    "added_tokens": [{"id": 3, "content": "<image>", "special": True}],
}  # fmt: skip
SLOW = {
    "chat_template": [{"name": "default", "template": "{{ x }}"}],
    "added_tokens_decoder": {"3": {"content": "<image>"}},
}
PIECES = b"".join(b"\x0a\x0a\x0a\x03<%d>\x15\x00\x00\x80\xbf" % n for n in range(4))
_NAMES = ("tokenizer.json", "vocab.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json",
          "chat_template.json", "chat_template.jinja")  # fmt: skip
_contents = st.one_of(documents(st.just(FAST)), documents(st.just(SLOW)), documents(st.just(FAST["model"]["vocab"])),
                      st.builds(torn, st.just(PIECES), changes), anything)  # fmt: skip
tokenizers = st.builds(lambda which, data: bytes([which % len(_NAMES)]) + data, numbers, _contents)


def _header(data: bytes) -> Any:
    return parse_header(lambda begin, end: data[begin:end], len(data), Path("x.safetensors"))


def _as_safetensors(data: bytes, value: Any) -> str:
    """What fuse accepts the safetensors package accepts, with the same names, dtypes, shapes and bytes."""
    try:
        theirs = dict(deserialize(data))
    except SafetensorError as error:
        return f"safetensors refuses it: {error}"
    told = {name: (one["dtype"], tuple(one["shape"]), bytes(one["data"])) for name, one in theirs.items()}
    ours = {name: (one.dtype, one.shape, data[one.begin : one.end]) for name, one in value.items()}
    return "" if told == ours else f"safetensors reads {told}"


def _index(folder: Path, data: bytes) -> Any:
    (folder / "model.safetensors.index.json").write_bytes(data)
    return read_tensors(folder)


def _as_json(data: bytes, value: Any) -> str:
    told = json.loads(data)["weight_map"]
    return (
        "" if told == {name: entry.file.name for name, entry in value.items()} == SHARDS else f"the index says {told}"
    )


def _recipe(file: Path, data: bytes) -> Any:
    file.write_bytes(data)
    return load_recipe(file)


def _as_ruamel(data: bytes, value: Any) -> str:
    """The recipe is what ruamel's own constructor builds of the text."""
    try:
        plain = YAML(typ="safe", pure=True).load(data.decode().removeprefix("\ufeff").replace("\r\n", "\n"))
    except YAMLError as error:
        return f"ruamel refuses it: {error}"
    theirs = Recipe.model_validate(plain)
    return "" if theirs == value.recipe else f"ruamel reads {theirs}"


def _config(folders: dict[str, Path], data: bytes) -> Any:
    name, _, rest = data.partition(b"\n")
    folder = folders[name.decode()]
    (folder / "config.json").write_bytes(rest)
    return open_member("member", str(folder), revision=None, relative_to=folder)


def _all_placed(_data: bytes, member: anatomy.Member) -> str:
    placed = sum(map(len, member.parts.values())) + sum(place is None for place in member.places.values())
    return (
        "" if placed == len(member.checkpoint.tensors) else f"{placed} of {len(member.checkpoint.tensors)} are placed"
    )


def _tokenizer(folder: Path, data: bytes) -> Any:
    which = _NAMES[data[0]]
    for file in folder.iterdir():
        file.unlink()
    if which not in {"tokenizer.json", "vocab.json", "tokenizer.model"}:
        (folder / "vocab.json").write_bytes(text_of(FAST["model"]["vocab"]))
    (folder / which).write_bytes(data[1:])
    vocabulary._parsed.clear()
    return vocabulary.read_vocabulary(folder)


def _one_row_each(_data: bytes, value: vocabulary.Vocabulary | None) -> str:
    if value is None:
        return "no tokenizer was found"
    rows = list(value.ids.values())
    fine = all(type(row) is int and row >= 0 for row in rows) and len(set(rows)) == len(rows)
    return "" if fine and isinstance(value.template, str) else f"the ids are {rows}"


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _shards(folder: Path) -> Path:
    folder.mkdir()
    for name, file in SHARDS.items():
        (folder / file).write_bytes(packed({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)))
    return folder


def _members(folder: Path) -> dict[str, Path]:
    """Folders whose weights fit the configs before they are changed."""
    made = {name: folder / name for name in _MEMBERS}
    for name, place in made.items():
        place.mkdir()
        if name != "llama":
            shutil.copyfile(RECIPES / "zoo" / name / "model.safetensors", place / "model.safetensors")
    shapes = {"embed_tokens": (8, 8), "norm": (8,)} | {f"layers.0.{key}": shape for key, shape in {
        "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8), "self_attn.o_proj": (8, 8),
        "mlp.gate_proj": (16, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16), "input_layernorm": (8,),
        "post_attention_layernorm": (8,)}.items()}  # fmt: skip
    named = {f"model.{key}.weight": shape for key, shape in shapes.items()} | {"lm_head.weight": (8, 8)}
    entries, at = {}, 0
    for name, shape in named.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    (made["llama"] / "model.safetensors").write_bytes(packed(entries, bytes(at)))
    return made
