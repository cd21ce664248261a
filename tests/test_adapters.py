"""A base and an adapter as one member: what PEFT computes with the two, through merge and load."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoHaConfig, LoKrConfig, LoraConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from fuse.search.identity import members_digest
from tests import tiny_text
from tests.cli import Ran, fuse_here
from tests.members import save_member, save_tokenizer, words

IDS = torch.tensor([[1, 5, 7, 9, 33]])
TWO, LINEAR = ["q_proj", "down_proj"], {"method": "linear", "weights": {"a": 1}}
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny language models: with biases, with a tied head, and GPT-2's, whose weights lie [in, out]."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True))
    save_member(model, folder / "llama", words(63), {"<|old|>": 63})
    save_member(LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)), folder / "tied")
    save_member(tiny_text.build("gpt2", vocab_size=64), folder / "gpt2")
    return folder


def trained(place: Path, base: str, name: str, config: Any) -> Any:
    """An adapter with noise on all that it trains, saved as PEFT saves it."""
    peft: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(place / base), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (p for p in peft.parameters() if p.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    peft.save_pretrained(place / name)
    return peft


def run(place: Path, verb: str, out: str, **told: Any) -> Ran:
    recipe = place / f"{out}.json"
    recipe.write_text(json.dumps({"language": LINEAR, **told}))
    return fuse_here(verb, recipe, *([place / out, "--force"] if verb == "merge" else []))


CASES: dict[str, tuple[str, Any]] = {
    "lora": ("llama", LoraConfig(
        target_modules=TWO, r=4, lora_alpha=16, rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 3}, layers_to_transform=[1],
    )),
    "rslora": ("llama", LoraConfig(target_modules=TWO, r=4, lora_alpha=6, use_rslora=True)),
    "dora": ("llama", LoraConfig(target_modules=[*TWO, "lm_head"], use_dora=True)),
    "embedding": ("llama", LoraConfig(target_modules=["embed_tokens"], r=3)),
    "embedding by dora": ("llama", LoraConfig(target_modules=["embed_tokens"], r=3, use_dora=True)),
    "all biases": ("llama", LoraConfig(target_modules=TWO, bias="all")),
    "modules saved": ("llama", LoraConfig(target_modules=TWO, modules_to_save=["lm_head", "embed_tokens"])),
    "bias of B, tokens": ("llama", LoraConfig(target_modules=["q_proj"], lora_bias=True, trainable_token_indices=[9, 5])),
    "ia3": ("llama", IA3Config(target_modules=TWO, feedforward_modules=["down_proj"])),
    "loha": ("llama", LoHaConfig(target_modules=TWO, r=4, alpha=8, init_weights=False)),
    "lokr": ("llama", LoKrConfig(target_modules=TWO, r=4, alpha=8, init_weights=False)),
    "lokr, decomposed": ("llama", LoKrConfig(target_modules=TWO, r=1, alpha=2, decompose_both=True, init_weights=False)),
    "norms": ("llama", LNTuningConfig(target_modules=["norm", "input_layernorm"])),
    "tokens": ("tied", TrainableTokensConfig(token_indices=[9, 5])),
    "tied embedding": ("tied", LoraConfig(target_modules=["embed_tokens"])),
    "tied head": ("tied", LoraConfig(target_modules=["lm_head"])),
    "tied on purpose": ("tied", LoraConfig(target_modules=["embed_tokens"], ensure_weight_tying=True)),
    "tied, embedding saved": ("tied", LoraConfig(target_modules=TWO, modules_to_save=["embed_tokens"])),
    "gpt2 by dora": ("gpt2", LoraConfig(target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True)),
    "gpt2 by ia3": ("gpt2", IA3Config(target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"], fan_in_fan_out=True)),
}  # fmt: skip
UNTIED = {"tied embedding", "tied head", "tied, embedding saved"}  # head and embedding differ, as PEFT runs them


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_as_peft_computes_it(place: Path, case: str) -> None:
    base, config = CASES[case]
    peft = trained(place, base, case, config)
    ran = run(place, "merge", f"{case} out", members={"a": {"base": base, "adapter": case}})
    assert (ran.code, ran.err) == (0, ""), ran
    made: Any = AutoModelForCausalLM.from_pretrained(place / f"{case} out")
    wanted = peft(IDS).logits
    assert (made(IDS).logits - wanted).abs().max() < 2e-6
    plain: Any = AutoModelForCausalLM.from_pretrained(place / base)
    assert (plain(IDS).logits - wanted).abs().max() > 1e-3
    assert made.config.tie_word_embeddings == (base != "llama" and case not in UNTIED)


@pytest.fixture(scope="module")
def pair(place: Path) -> dict[str, Any]:
    """Two adapters as members, and the folders "one alone" and "two alone" that each gives in float32."""
    trained(place, "llama", "one", LoraConfig(target_modules=[*TWO, "embed_tokens"], r=4))
    trained(place, "llama", "two", LoraConfig(target_modules=[*TWO, "lm_head"], r=4, lora_alpha=20))
    save_tokenizer(place / "two", words(63), {"<|new|>": 63})
    adapted = {name: {"base": "llama", "adapter": name} for name in ("one", "two")}
    for name, member in adapted.items():
        assert run(place, "merge", f"{name} alone", members={"a": member}).code == 0
    return adapted


TIES = {"method": "ties", "weights": {"one": 0.5, "two": 0.7}, "density": 0.5}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "language",
    [
        TIES,  # the last row of the tables is of a token that is not shared
        {**TIES, "embeddings": "union"},
        {**TIES, "embeddings": "two"},
        {"method": "karcher"},
        {"method": "passthrough", "layers": [{"one": [0, 2]}, {"two": [0, 1]}]},
    ],
)
def test_a_member_like_any_other(place: Path, pair: dict[str, Any], language: dict[str, Any]) -> None:
    """The bytes of a merge of what was merged before, in float32."""
    base = {"base": "llama"} if language["method"] == "ties" else {}
    folders = {name: f"{name} alone" for name in pair}
    for out, members in (("before", folders), ("while", pair)):
        ran = run(place, "merge", out, members=members, language=language, **base)
        assert (ran.code, ran.err) == (0, "")
    assert (place / "while/model.safetensors").read_bytes() == (place / "before/model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_plan_and_provenance(place: Path) -> None:
    """Every tensor of the adapter is read, and named; the plan's number changes with what the adapter says."""
    trained(place, "llama", "told", LoraConfig(target_modules=TWO, r=4, modules_to_save=["lm_head"]))
    members = {"a": {"base": "llama", "adapter": "told"}}
    text = run(place, "plan", "told plan", members=members).out
    assert "  a.adapter: told  [9 tensors, " in text
    assert re.search(
        r"  4 +[\d,]+ +[\d.]+ .B  linear of a \(lora\) \[weights 1\]: model.layers.\{\}.mlp.down_proj.weight", text
    )
    assert "  a: lm_head.*  the adapter holds its own" in text
    recipe = place / "told plan.json"
    plan = json.loads(fuse_here("plan", recipe, "--json").out)
    assert plan["members"][0]["adapter"] == "told"
    row = next(row for row in plan["rows"] if row["name"] == "model.layers.1.mlp.down_proj.weight")
    update = row["sources"][0]["update"]
    assert (update["kind"], update["scale"], update["transposed"]) == ("lora", 2.0, False)
    assert update["A"]["tensor"] == "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    file = place / "told" / "adapter_config.json"
    config, before = json.loads(file.read_text()), members_digest(make_plan(load_recipe(recipe)))
    file.write_text(json.dumps(config | {"lora_alpha": 7}))
    other = json.loads(fuse_here("plan", recipe, "--json").out)
    assert members_digest(make_plan(load_recipe(recipe))) != before  # a search is not gone on with
    file.write_text(json.dumps(config))
    assert other["plan"] != plan["plan"]
    assert run(place, "merge", "told out", members=members).code == 0
    member = json.loads((place / "told out" / "fuse.json").read_text())["members"]["a"]
    assert (member["adapter"]["origin"], member["adapter"]["peft_type"]) == ("told", "LORA")
    assert list(member["adapter"]["sha256"]) == ["adapter_model.safetensors"]
    assert "| a | llama + told |" in (place / "told out" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")
def test_embeddings_that_were_resized_bring_their_tokenizer(place: Path) -> None:
    """PEFT saves both tables where rows were added; the tokenizer beside them is the member's."""
    model: Any = AutoModelForCausalLM.from_pretrained(place / "llama")
    model.resize_token_embeddings(66, mean_resizing=False)
    peft: Any = get_peft_model(model, LoraConfig(target_modules=TWO)).eval()
    peft.save_pretrained(place / "chat", save_embedding_layers=True)
    members = {"a": {"base": "llama", "adapter": "chat"}}
    save_tokenizer(place / "chat", words(64), {"<|begin|>": 64, "<|end|>": 65}, template="{{ messages }}")
    ran = run(place, "merge", "chat out", members=members)
    assert (ran.code, ran.err) == (0, "")
    made: Any = AutoModelForCausalLM.from_pretrained(place / "chat out")
    assert made.config.vocab_size == 66
    assert torch.equal(made(torch.tensor([[1, 65]])).logits, peft(torch.tensor([[1, 65]])).logits)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "chat out")
    assert tokenizer("w5 <|end|>")["input_ids"] == [5, 65] and tokenizer.chat_template == "{{ messages }}"


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_without_its_rows_is_refused(place: Path) -> None:
    trained(place, "llama", "short", LoraConfig(target_modules=TWO))
    save_tokenizer(place / "short", words(64), {"<|begin|>": 64})
    ran = run(place, "plan", "short", members={"a": {"base": "llama", "adapter": "short"}})
    assert (ran.code, ran.err) == (3, f"fuse: {place / 'short'}: the adapter's tokenizer.json has 65 tokens, and the embedding has 64 rows (the adapter should hold the embedding that was resized (PEFT's save_embedding_layers))\n")  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_other_names_for_a_language_model(place: Path) -> None:
    """Of a class without a head, of one around it, and with the adapter's own name in the keys."""
    trained(place, "llama", "named", LoraConfig(target_modules=TWO))
    members = {"a": {"base": "llama", "adapter": "named"}}
    assert run(place, "merge", "named out", members=members).code == 0
    wanted = (place / "named out" / "model.safetensors").read_bytes()

    file = place / "named" / "adapter_model.safetensors"
    held = load_file(file)
    for old, new in (
        ("base_model.model.model.layers", "base_model.model.layers"),
        ("base_model.model.model.layers", "base_model.model.model.language_model.layers"),
        ("base_model.model.model.layers", "base_model.model.language_model.model.layers"),
        (".weight", ".default.weight"),
    ):
        save_file({key.replace(old, new): tensor for key, tensor in held.items()}, file)
        assert run(place, "merge", "named again", members=members).code == 0
        assert (place / "named again" / "model.safetensors").read_bytes() == wanted


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_a_base_in_half_precision_stays_so(place: Path) -> None:
    """What PEFT saves in float32 beside it too; the change is rounded once, from float32 factors."""
    torch.manual_seed(0)
    save_member(LlamaForCausalLM(LlamaConfig(**SIZES)), place / "half", dtype=torch.bfloat16)
    trained(place, "half", "fine", LoraConfig(target_modules=TWO, r=4, modules_to_save=["lm_head"]))
    held = {k: v.float() for k, v in load_file(place / "fine" / "adapter_model.safetensors").items()}
    save_file(held, place / "fine" / "adapter_model.safetensors")
    ran = run(place, "merge", "half out", members={"a": {"base": "half", "adapter": "fine"}})
    assert (ran.code, ran.err) == (0, "")
    made, base = (load_file(place / f / "model.safetensors") for f in ("half out", "half"))
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    at = "model.layers.1.mlp.down_proj"
    down, up = (held[f"base_model.model.{at}.lora_{side}.weight"].double() for side in "AB")
    wanted = base[f"{at}.weight"].double() + 8 / 4 * (up @ down)
    assert torch.equal(made[f"{at}.weight"], wanted.float().bfloat16())
    assert torch.equal(made["lm_head.weight"], held["base_model.model.lm_head.weight"].bfloat16())
