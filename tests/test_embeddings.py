"""Rows of embeddings and heads by token, where vocabularies and heads differ: merge, union, base, one member's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.cli import fuse_here
from tests.members import perturbed, save_member, words

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# rows 0 to 59 are the model's own; `<a>` and `<b>` are everybody's, at other ids; `<host>` and `<guest>` one's
ADDED = {
    "host": {"<a>": 60, "<b>": 61, "<host>": 62},
    "guest": {"<b>": 60, "<guest>": 61, "<a>": 62},
    "base": {"<a>": 60, "<b>": 61},
}
SHARED = {**{i: i for i in range(60)}, 60: 62, 61: 60}  # row of the host -> of the guest


@pytest.fixture(scope="module", params=["tied", "untied", "a tied guest"])
def family(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    tied = request.param == "tied"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=64, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    for seed, name in enumerate(ADDED):
        made = perturbed(model, seed)
        if name == "guest" and request.param == "a tied guest":
            made.config.tie_word_embeddings = True
            made.tie_weights()
        save_member(made, root / name, words(60), ADDED[name])
    return root


def rows(root: Path, name: str, table: str) -> torch.Tensor:
    found = load_file(root / name / "model.safetensors")
    return found.get(table, found[EMBED])


@pytest.mark.parametrize("choice", ["merge", "union", "base", "guest", "host"])
def test_rows_follow_their_tokens(family: Path, tmp_path: Path, choice: str) -> None:
    (family / "r.yaml").write_text(
        "base: base\nmembers: {host: host, guest: guest}\n"
        f"language: {{method: task_arithmetic, weights: {{host: 0.5, guest: 0.25}}, embeddings: {choice}}}\n"
    )
    ran = fuse_here("merge", family / "r.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    out = load_file(tmp_path / "out" / "model.safetensors")
    tied = HEAD not in load_file(family / "host" / "model.safetensors")
    assert (HEAD in out) != tied
    for table in (EMBED,) if tied else (EMBED, HEAD):
        host, guest, base = (rows(family, name, table) for name in ADDED)
        wanted = host.clone()
        for mine, theirs in SHARED.items():
            z = base[mine]
            mixed = z + 0.5 * (host[mine] - z) + 0.25 * (guest[theirs] - z)
            given = {"base": z, "guest": guest[theirs], "host": host[mine]}
            wanted[mine] = given.get(choice, mixed)
        if choice == "union":
            wanted[63] = guest[61]
        torch.testing.assert_close(out[table], wanted, rtol=0, atol=1e-6)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert fuse_here("ask", tmp_path / "out", "w5 <a> w6", "--max-tokens", 3).code == 0


def test_layers_and_numbers_go_with_rows(family: Path, tmp_path: Path) -> None:
    """A stack of merged layers with a list over depth and a pattern, and the union of tokens."""
    weights = '{host: 1, guest: {"*embed*": 3, "*": [0, 1, 2]}}'
    (family / "r.yaml").write_text(
        "members: {host: host, guest: guest}\n"
        f"language: {{method: linear, normalize: false, weights: {weights}, embeddings: union,\n"
        "  layers: [{host: [0, 2], guest: [0, 2]}, {guest: [1, 2], host: [0, 1]}]}\n"
    )
    ran = fuse_here("merge", family / "r.yaml", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    out, host, guest = (
        load_file(f / "model.safetensors") for f in (tmp_path / "out", family / "host", family / "guest")
    )
    torch.testing.assert_close(out[EMBED][5], host[EMBED][5] + 3 * guest[EMBED][5], rtol=0, atol=1e-6)
    torch.testing.assert_close(out[EMBED][63], guest[EMBED][61], rtol=0, atol=0)
    for number, (mine, theirs) in enumerate([(0, 0), (1, 1), (0, 1)]):
        up = "model.layers.{}.mlp.up_proj.weight"
        wanted = host[up.format(mine)] + number * guest[up.format(theirs)]
        torch.testing.assert_close(out[up.format(number)], wanted, rtol=0, atol=1e-6)
