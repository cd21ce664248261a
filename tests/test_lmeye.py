"""LMEye's interactive perception network against the official code's numbers, and the laws it keeps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fuse.branches.lmeye_blip2_projector import LmeyeBlip2Projector
from fuse.branches.lmeye_projector import LmeyeProjector
from fuse.grafts.graft import Reading, Sight
from fuse.grafts.lmeye import LmeyeGraft
from fuse.grafts.lmeye_blip2 import LmeyeBlip2Graft
from fuse.importers import About, Imported
from fuse.importers.lmeye import sort_keys
from tests.original_branches import difference, golden

Golden = tuple[dict[str, torch.Tensor], dict[str, Any]]


def parameters(tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    start = "param." + prefix
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


def clip_folder(tensors: dict[str, torch.Tensor], text: dict[str, Any], folder: Path) -> Path:
    """The golden's CLIP as a folder, with the ids that the fixture's texts begin and end with."""
    folder.mkdir()
    save_file(parameters(tensors, "clip."), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": text}))
    ends = {"<|startoftext|>": 0, "<|endoftext|>": text["vocab_size"] - 1}
    (folder / "vocab.json").write_text(json.dumps(ends))
    return folder


def imported(name: str, folder: Path) -> tuple[Imported, Golden]:
    """The golden's parameters through the import map, as a file of the whole model."""
    tensors, facts = golden(name)
    text = facts["clip_config"]["text"] if "clip_config" in facts else facts["constructor"]["clip_text"]
    options = {"clip": str(clip_folder(tensors, text, folder / "clip"))}
    if "qformer" in facts["constructor"]:
        options["blip2"] = str(blip2_folder(tensors, facts["constructor"], folder / "blip2"))
    return sort_keys(parameters(tensors), About(options)), (tensors, facts)


def blip2_folder(tensors: dict[str, torch.Tensor], made: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    frozen = ("query_tokens", "qformer.", "vision_model.", "language_model.")
    save_file({k: t for k, t in parameters(tensors).items() if k.startswith(frozen)}, folder / "model.safetensors")
    told = {"model_type": "blip-2", "vision_config": made["vision"], "qformer_config": made["qformer"]}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def built(module: Callable[[Any], Any], piece: Any) -> Any:
    made = module(piece.config)
    made.load_state_dict(piece.tensors)
    return made.eval()


def llama(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**facts["llama_config"])).eval()
    model.load_state_dict(parameters(tensors, "llm."))
    return model


def reading(
    ids: torch.Tensor, mask: torch.Tensor, embeds: torch.Tensor, sights: list[Sight], run: Any, **slots: int
) -> Reading:
    numbers = torch.zeros_like(ids)
    return Reading(ids, mask, numbers, embeds, {"eyes": sights}, lambda x: x, run, ids=slots)


def test_the_first_generation_meets_its_golden(tmp_path: Path) -> None:
    """LMEye_model.generate: the image through CLIP, both passes, the logits of the second."""
    found, (tensors, facts) = imported("lmeye_v1_generate", tmp_path)
    tolerance, text = float(facts["tolerance"]), facts["clip_config"]
    eyes = CLIPVisionModelWithProjection(CLIPVisionConfig(**text["vision"], projection_dim=text["projection_dim"]))
    eyes.load_state_dict({k: t for k, t in parameters(tensors, "clip.").items() if k.startswith("vis")})
    mapping, graft, model = (
        built(LmeyeProjector, found.projector),
        built(LmeyeGraft, found.graft),
        llama(tensors, facts),
    )
    ids, mask = tensors["input.input_ids"], torch.ones_like(tensors["input.input_ids"])
    with torch.no_grad():
        image = eyes.eval()(tensors["input.image"][None]).image_embeds  # [1, c]
        assert difference(image, tensors["inter.clip_image_feature"]) <= tolerance
        embeds = model.get_input_embeddings()(ids)
        column = (ids[0] == facts["img_token_id"]).nonzero()[:, 0]
        embeds[0, column] = mapping(image[:, None])[0]
        passes = []

        def run(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            passes.append(embeds)
            return model.model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state

        told = reading(
            ids, mask, embeds, [Sight(0, image, embeds[0, column], column)], run, imgd=facts["imgd_token_id"]
        )
        assert graft.read(told) == {}
        assert len(passes) == 1
        assert difference(passes[0], tensors["inter.pass1_embeds"]) <= tolerance
        assert difference(told.embeds, tensors["inter.pass2_embeds"]) <= tolerance
        assert difference(model(inputs_embeds=told.embeds).logits, tensors["output.logits"]) <= tolerance
        answer = graft.interact(image, graft.llm2clip(run(passes[0], mask)[:, 7]))
    assert difference(answer, tensors["inter.clip_text_feature"]) <= tolerance


def test_the_training_code_asks_with_one_slot(tmp_path: Path) -> None:
    """promot_model_instruction_remake.forward: two prompts, right padding, the request from another text."""
    found, (tensors, facts) = imported("lmeye_v1_train_forward", tmp_path)
    tolerance = float(facts["tolerance"])
    mapping, graft, model = (
        built(LmeyeProjector, found.projector),
        built(LmeyeGraft, found.graft),
        llama(tensors, facts),
    )
    image, ids = tensors["input.clip_image_feature"], tensors["input.input_ids"]
    with torch.no_grad():
        before = tensors["inter.pass1_embeds"]
        hidden = model.model(inputs_embeds=before, attention_mask=tensors["input.pre_attention_mask"]).last_hidden_state
        asked = hidden[tensors["input.pre_input_ids"] == facts["imgd_token_id"]]
        answer = graft.interact(image, graft.llm2clip(asked))
        assert difference(answer, tensors["inter.clip_text_feature"]) <= tolerance
        embeds = model.get_input_embeddings()(ids)
        embeds[ids == facts["img_token_id"]] = mapping(image[:, None])[:, 0]
        offset = graft.embedding_imgd.weight[0]
        embeds[ids == facts["imgd_token_id"]] = graft.imgdLinear(answer).view(-1, 32) + offset
        assert difference(embeds, tensors["inter.pass2_embeds"]) <= tolerance
        mask = tensors["input.attention_mask"]
        logits = model(inputs_embeds=embeds, attention_mask=mask).logits
        kept = mask[..., None].bool()
        assert difference(logits * kept, tensors["output.logits"] * kept) <= tolerance
        loss = model(inputs_embeds=embeds, attention_mask=mask, labels=tensors["input.labels"]).loss
    assert difference(loss, tensors["output.loss"]) <= tolerance


def test_the_second_generation_meets_its_golden(tmp_path: Path) -> None:
    """Blip2InstructionQueryModel.forward: two prompts, the vision tower, the Q-Former, T5's encoder, then all of T5."""
    found, (tensors, facts) = imported("lmeye_blip2_flant5", tmp_path)
    made, tolerance, pseudo = facts["constructor"], float(facts["tolerance"]), facts["pseudo_ids"]
    graft, former = built(LmeyeBlip2Graft, found.graft), built(LmeyeBlip2Projector, found.projector)
    t5 = T5ForConditionalGeneration(T5Config(**made["text"])).eval()
    words = parameters(tensors, "language_model.")
    shared = words.pop("shared.weight")
    tied = {f"{stack}.embed_tokens.weight": shared for stack in ("encoder", "decoder")}
    t5.lm_head.weight = torch.nn.Parameter(t5.lm_head.weight.clone())  # the fixture's is not tied
    t5.load_state_dict({**words, **tied, "shared.weight": shared})
    tower = Blip2VisionModel(Blip2VisionConfig(**made["vision"])).eval()
    tower.load_state_dict(parameters(tensors, "vision_model."))
    ids, mask = tensors["input.input_ids"], tensors["input.attention_mask"]
    with torch.no_grad():
        seen = tower(tensors["input.pixel_values"], output_hidden_states=True)
        assert difference(seen.last_hidden_state, tensors["inter.vision_last_hidden_state"]) <= tolerance
        looked = former.look(seen.hidden_states[-1][:, None])
        assert difference(looked, tensors["inter.qformer_last_hidden_state"]) <= tolerance
        embeds, sights = t5.shared(ids.clamp(min=0)), []
        for row, tokens in enumerate(former(looked)):
            columns = (ids[row] == pseudo["IMG"]).nonzero()[:, 0]
            embeds[row, columns] = tokens
            sights.append(Sight(row, looked[row], tokens, columns))
        states = []

        def run(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states.append(t5.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state)
            return states[-1]

        told = reading(ids, mask, embeds, sights, run, imgq=pseudo["IMG_Q"], imgd=pseudo["IMG_D"])
        graft.read(told)
        asked = states[0][ids == pseudo["IMG_Q"]]
        assert difference(graft.instruction_blip22clip(asked), tensors["inter.request"]) <= tolerance
        assert difference(graft.interact(looked, asked), tensors["inter.clip_text_feature"]) <= tolerance
        assert difference(told.embeds, tensors["inter.pass2_embeds"]) <= tolerance
        out = t5(
            inputs_embeds=told.embeds, attention_mask=mask, decoder_input_ids=tensors["input.decoder_input_ids"]
        ).logits
    assert difference(out, tensors["output.logits"]) <= tolerance
