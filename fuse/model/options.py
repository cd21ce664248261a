"""The options of a call of the fused processor."""

from typing import Any

from fuse.errors import RecipeError


def checked_options(given: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's options that mean something here; an error for one that does not.

    Options come alone or, as transformers nests them, under `text_kwargs`.
    """
    flat = {**{k: v for k, v in given.items() if not k.endswith("_kwargs")}, **(given.get("text_kwargs") or {})}
    if flat.get("truncation"):
        raise RecipeError("truncation would cut images apart", hint="shorten the prompt, or set max_tokens on a branch")
    if flat.pop("return_tensors", "pt") not in ("pt", None):
        raise RecipeError("only return_tensors='pt' works here")
    length = flat.pop("max_length", None)
    if flat.pop("padding", True) == "max_length" and length:
        flat["length"] = length
    known = {"add_special_tokens", "padding_side", "length", "truncation", "return_dict", "return_mm_token_type_ids"}
    if lost := sorted(flat.keys() - known - {"padding"}):
        raise RecipeError(f"there is no option {lost[0]!r}", hint=f"there are {', '.join(sorted(known - {'length'}))}")
    return flat
