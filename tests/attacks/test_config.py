"""config.json of members: of another kind, absurd, at odds with the weights, or asking for code."""

from pathlib import Path
from typing import Any

import pytest

from tests.attacks.harness import Attack, hold
from tests.attacks.making import Make, both, directory, fifo, file, sparse
from tests.attacks.scenes import FUSED, GONE, SEEN, changed, edited, gone, place


def raw(data: str | bytes) -> Make:
    return file("b/config.json", data)


def b(**keys: Any) -> Make:
    return changed("b/config.json", **keys)


def a(**keys: Any) -> Make:
    return changed("a/config.json", **keys)


def v(**keys: Any) -> Make:
    return changed("v1/config.json", **keys)


def nested(config: dict[str, Any]) -> None:
    config["text_config"] = dict(config)


FILES: list[tuple[str, Make, str]] = [
    ("missing", gone("b/config.json"), "b/config.json: the file is missing"),
    ("empty", raw(""), "b/config.json: the file is empty"),
    ("null", raw("null"), "b/config.json: holds null, not an object"),
    ("a list", raw("[]"), "b/config.json: holds a JSON list, not an object"),
    ("a word", raw('"x"'), "b/config.json: holds a JSON str, not an object"),
    ("a byte order mark", raw("\ufeff{}"), "b/config.json: begins with a byte order mark (save it as UTF-8 without BOM)"),
    ("UTF-16", raw("{}".encode("utf-16")), "b/config.json: not UTF-8 at byte 0"),
    ("model_type twice", raw('{"model_type": "llama", "model_type": "gpt2"}'), "b/config.json: key 'model_type' stands twice in one object"),
    ("nested too deeply", raw('{"model_type": "llama", "x": ' + "[" * 5000 + "]" * 5000 + "}"), "b/config.json: nested too deeply"),
    ("NaN", raw('{"model_type": "llama", "rms_norm_eps": NaN}'), "b/config.json: NaN is not a JSON number"),
    ("a folder", both(gone("b/config.json"), directory("b/config.json")), "b/config.json: this is not a plain file"),
    ("a pipe", fifo("b/config.json"), "b/config.json: this is not a plain file"),
    ("of 1 TB", sparse("b/config.json", 1 << 40, b"{"), "b/config.json: 1,099,511,627,776 bytes is more than the 16,777,216 that fuse reads"),
    ("of 17 MB", raw('{"model_type": "llama", "x": "' + "y" * (17 << 20) + '"}'), "b/config.json: 17,825,824 bytes is more than the 16,777,216 that fuse reads"),
]  # fmt: skip
VALUES: list[tuple[str, Make, str]] = [
    ("no model_type", b(model_type=GONE), "b: config.json: model_type is missing (is this a folder that transformers wrote?)"),
    ("an unknown model_type", b(model_type="llama5"), "b: config.json: model_type 'llama5' is not a family that fuse knows (did you mean llama or mllama or llava?)"),
    ("a path as model_type", b(model_type="../x"), "b: config.json: model_type '../x' is not a plain word"),
    ("a list as model_type", b(model_type=["llama"]), "b: config.json: model_type \"['llama']\" is not a plain word"),
    ("a fused folder", b(model_type="fuse"), "b: is a fused folder, which cannot be a member (name the members that its fuse.json lists)"),
    ("a billion layers", b(num_hidden_layers=10**9), "b: config.json: num_hidden_layers is 1000000000, not a whole number from 1 to 9,999"),
    ("9,999 layers", b(num_hidden_layers=9999), "b: tensor 'model.layers.2.self_attn.q_proj.weight' is missing: config.json promises 9999 layers of llama"),
    ("-1 layers", b(num_hidden_layers=-1), "b: config.json: num_hidden_layers is -1, not a whole number from 1 to 9,999"),
    ("0 layers", b(num_hidden_layers=0), "b: config.json: num_hidden_layers is 0, not a whole number from 1 to 9,999"),
    ("'32' layers", b(num_hidden_layers="32"), "b: config.json: num_hidden_layers is '32', not a whole number from 1 to 9,999"),
    ("1.5 layers", b(num_hidden_layers=1.5), "b: config.json: num_hidden_layers is 1.5, not a whole number from 1 to 9,999"),
    ("true layers", b(num_hidden_layers=True), "b: config.json: num_hidden_layers is True, not a whole number from 1 to 9,999"),
    ("a layer too many", b(num_hidden_layers=3), "b: tensor 'model.layers.2.self_attn.q_proj.weight' is missing: config.json promises 3 layers of llama"),
    ("a layer too few", b(num_hidden_layers=1), "b: tensor 'model.layers.1.input_layernorm.weight' belongs to none of the 1 layers of config.json"),
    ("2**62 tokens", b(vocab_size=2**62), "b: config.json: vocab_size is 4611686018427387904, not a whole number from 1 to 2,147,483,647"),
    ("a token too many", b(vocab_size=65), "b: tensor 'model.embed_tokens.weight' has shape [64, 32], but config.json makes it [65, 32] (V D)"),
    ("another width", b(hidden_size=33), "b: tensor 'model.embed_tokens.weight' has shape [64, 32], but config.json makes it [64, 33] (V D)"),
    ("heads that do not divide the width", b(num_attention_heads=5, head_dim=GONE), "b: config.json: hidden size 32 does not divide by 5 heads"),
    ("another number of key heads", b(num_key_value_heads=3), "b: tensor 'model.layers.0.self_attn.k_proj.weight' has shape [16, 32], but config.json makes it [24, 32] (K D)"),
    ("another activation", b(hidden_act="gelu"), "b/config.json: a and b are not of one base: activation is silu in a and gelu in b (members of one base agree in this; `accept: [activation]` under language goes on with the host's value)"),
    ("a list as activation", b(hidden_act=["silu"]), "b: config.json: hidden_act is ['silu'], not a word"),
    ("tied by a word", b(tie_word_embeddings="yes"), "b: config.json: tie_word_embeddings is 'yes', not true or false"),
    ("biases that are not there", b(attention_bias=True), "b: config.json: attention_bias is true, and no tensor 'model.layers.0.self_attn.q_proj.bias' is stored"),
    ("biases by a word", b(mlp_bias="x"), "b: config.json: mlp_bias is 'x', not true or false"),
    ("rotary parameters as a list", b(rope_parameters=[1]), "b: config.json: rope_parameters is [1], not a mapping"),
    ("an infinite theta", b(rope_parameters={"rope_theta": 1e301}), "b: config.json: rope_theta is 1e+301, not a finite number"),
    ("another rotation", b(rope_parameters={"rope_type": "evil", "factor": 1}), 'b/config.json: a and b are not of one base: rope_scaling is none in a and {"factor":1.0,"rope_type":"evil"} in b (members of one base agree in this; `accept: [rope_scaling]` under language goes on with the host\'s value)'),
    ("a class as dtype", a(dtype="os.system"), "a: config.json: dtype is 'os.system', and fuse writes float64, float32, bfloat16, float16"),
    ("a number as dtype", a(dtype=GONE, torch_dtype=7), "a: config.json: torch_dtype is 7, and fuse writes float64, float32, bfloat16, float16"),
    ("a word as architectures", a(architectures="Llama"), "a: config.json: architectures is 'Llama', not a list of classes"),
    ("a path among the architectures", a(architectures=["../evil"]), "a: config.json: architectures is ['../evil'], not a list of classes"),
    ("positions by a word", a(max_position_embeddings="x"), "a: config.json: max_position_embeddings is 'x', not a whole number from 1 on"),
    ("2**62 positions", a(max_position_embeddings=2**62), "a: config.json: max_position_embeddings is 4611686018427387904, not a whole number from 1 on"),
    ("an end token by a word", a(eos_token_id=["x"]), "a: config.json: eos_token_id is ['x'], not a token's number"),
]  # fmt: skip
CODE: list[tuple[str, Make, str]] = [
    ("trust_remote_code inside", b(x={"y": [{"trust_remote_code": True}]}), "b/config.json: x.y[0].trust_remote_code asks to run code from the folder; fuse never does"),
    ("attention from a repository", b(_attn_implementation="evil/kernels"), "b/config.json: _attn_implementation: 'evil/kernels' names code to fetch; fuse never does"),
    ("attention without underscore", b(attn_implementation="evil/kernels"), "b/config.json: attn_implementation: 'evil/kernels' names code to fetch; fuse never does"),
    ("experts from a repository", b(experts_implementation="evil/kernels"), "b/config.json: experts_implementation: 'evil/kernels' names code to fetch; fuse never does"),
    ("attention of a part", b(_attn_implementation={"": "sdpa", "text_config": "evil/kernels"}), "b/config.json: _attn_implementation: {'': 'sdpa', 'text_config': 'evil/kernels'} names code to fetch; fuse never does"),
    ("internal attention", b(_attn_implementation_internal="eager"), "b/config.json: _attn_implementation_internal: 'eager' names code to fetch; fuse never does"),
    ("GPTQ", b(quantization_config={"quant_method": "gptq", "bits": 4}), "b/config.json: quantization_config: the weights are quantised (gptq) (merge the unquantised checkpoint)"),
    ("bitsandbytes", b(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "b/config.json: quantization_config: the weights are quantised (bitsandbytes) (merge the unquantised checkpoint)"),
    ("quantised in a word", b(quantization_config="fp8"), "b/config.json: quantization_config: the weights are quantised (fp8) (merge the unquantised checkpoint)"),
    ("compressed", b(compression_config={"format": "pack-quantized"}), "b/config.json: compression_config: the weights are quantised (?) (merge the unquantised checkpoint)"),
]  # fmt: skip
EYES: list[tuple[str, Make, str]] = [
    ("no vision_config", v(vision_config=GONE), "v1: config.json: vision_config is missing"),
    ("vision_config as a list", v(vision_config=[]), "v1: config.json: vision_config is missing"),
    ("no text_config", v(text_config=GONE), "v1: config.json: text_config is missing"),
    ("text_config as a word", v(text_config="llama"), "v1: config.json: text_config is 'llama', not an object"),
    ("a config in itself", edited("v1/config.json", nested), "v1: config.json: model_type 'llava' is not a language model that fuse knows (did you mean llama?)"),
    ("an image token beyond the table", v(image_token_index=999, image_token_id=999), "v1: config.json: image_token_id is 999, and the embedding has 96 rows"),
    ("a negative image token", v(image_token_id=-1), "v1: config.json: image_token_id is -1, and the embedding has 96 rows"),
    ("an image token by a word", v(image_token_id="90"), "v1: config.json: image_token_id is '90', and the embedding has 96 rows"),
    ("a billion layers in the encoder", v(vision_config__num_hidden_layers=10**9), "v1: config.json: vision_config.num_hidden_layers is 1000000000, and the encoder's tensors have 2 layers"),
    ("a layer too many in the encoder", v(vision_config__num_hidden_layers=3), "v1: config.json: vision_config.num_hidden_layers is 3, and the encoder's tensors have 2 layers"),
    ("a layer too few in the encoder", v(vision_config__num_hidden_layers=1), "v1: config.json: vision_config.num_hidden_layers is 1, and the encoder's tensors have 2 layers"),
    ("heads that do not divide the encoder's width", v(vision_config__hidden_size=17), "v1: config.json: vision_config.hidden_size 17 does not divide by 2 heads"),
    ("images of a billion pixels an edge", v(vision_config__image_size=10**9), "v1: config.json: vision_config.image_size is 1000000000, not a whole number from 1 to 65,535"),
    ("more patches than are stored", v(vision_config__image_size=60_000), "v1: config.json: vision_config makes 18,361,225 patches of an image (image_size 60000, patch_size 14), more than the 13,488 numbers of the encoder have places for"),
    ("patches of no pixels", v(vision_config__patch_size=0), "v1: config.json: vision_config.patch_size is 0, not a whole number from 1 to 65,535"),
    ("images by a word", v(vision_config__image_size="x"), "v1: config.json: vision_config.image_size is 'x', not a whole number from 1 to 65,535"),
    ("a path as the encoder's type", v(vision_config__model_type="../evil"), "v1: config.json: model_type '../evil' is not a plain word"),
    ("a layer that the encoder does not have", v(vision_feature_layer=99), "v1: config.json: vision_feature_layer is 99, and the encoder has 2 layers"),
    ("a layer by a word", v(vision_feature_layer="last"), "v1: config.json: vision_feature_layer is 'last', and the encoder has 2 layers"),
    ("another way to select features", v(vision_feature_select_strategy="evil"), "v1: config.json: vision_feature_select_strategy is 'evil', not default or full"),
    ("attention of the encoder from a repository", edited("v1/config.json", lambda c: c["vision_config"].update(_attn_implementation="evil/x")), "v1/config.json: vision_config._attn_implementation: 'evil/x' names code to fetch; fuse never does"),
]  # fmt: skip
BUILT: list[tuple[str, Make, str]] = [
    ("an unknown encoder", v(vision_config__model_type="evil"), "out: config.json: transformers has no encoder 'evil' (vision_config.model_type)"),
    ("an unknown activation of the projector", v(projector_hidden_act="evil"), "out: config.json: projector_hidden_act is 'evil', which transformers does not have"),
]  # fmt: skip


def attacks(table: list[tuple[str, Make, str]]) -> list[Attack]:
    return [Attack(name, make, 3, sentence) for name, make, sentence in table]


@pytest.mark.parametrize("case", attacks([*FILES, *VALUES, *CODE]), ids=str)
def test_config_of_a_language_model(case: Attack, family: Path, tmp_path: Path) -> None:
    place(tmp_path, family)
    hold(case, tmp_path)


@pytest.mark.parametrize("case", attacks(EYES), ids=str)
def test_config_of_an_encoder(case: Attack, seeing: Path, tmp_path: Path) -> None:
    place(tmp_path, seeing, SEEN)
    hold(case, tmp_path)


@pytest.mark.parametrize("case", attacks(BUILT), ids=str)
def test_config_that_transformers_does_not_build(case: Attack, seeing: Path, tmp_path: Path) -> None:
    place(tmp_path, seeing, FUSED)
    hold(case, tmp_path)
