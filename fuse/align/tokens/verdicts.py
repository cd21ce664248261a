"""Sentences about tokens, computed from the document of `fuse inspect tokens`."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.sizes import counted
from fuse.verdicts import CORE_TOLERANCE, Verdict

NAMED = 3  # tokens that a sentence names
# words for the parts of a tokenizer.json
PARTS = {"normalizer": "normalizer", "pre_tokenizer": "pre-tokenizer", "model": "model", "merges": "merges",
         "scores": "scores", "post_processor": "post-processor", "decoder": "decoder"}  # fmt: skip
Document = Mapping[str, Any]


def verdicts(document: Document) -> list[Verdict]:
    """Every sentence: first of each folder alone where something is wrong in it, then of host and other, pair by pair.

    A vocabulary counts as the same up to added tokens as long as `fuse merge` takes it: at most 1% of the host's own
    tokens stand at another id (CORE_TOLERANCE). No other threshold is used: all else is equal or not.
    """
    folders = {one["name"]: one for one in document["folders"]}
    found = [verdict for one in document["folders"] for verdict in _alone(one)]
    for pair in document["pairs"]:
        host, other = folders[pair["host"]], folders[pair["other"]]
        found += [_vocabulary(pair, host), _recipe(pair, host, other), _special(pair, host, other)]
        found += _image(pair, host, other)
        found += [_cutting(pair, host, other), *_around(pair, host, other), _template(pair, host, other)]
        found += _text(document, pair)
    return found


def _alone(folder: Document) -> list[Verdict]:
    name, rows, found = folder["name"], folder["embedding"], []
    if rows["missing"]:
        tokens = counted(rows["missing"], "token")
        found.append(Verdict("rows", False, f"{name} has {tokens} beyond the {rows['rows']:,} rows of its embedding"))
    for role, one in folder["special"].items():
        if one["disagrees"] and one["stated"] not in folder["ends"]:
            told = f"{role} is {_token(one)} in its tokenizer and id {one['stated']} in its config.json"
            found.append(Verdict("special tokens", False, f"{name} disagrees with itself: {told}"))
        if one["token"] is not None and one["id"] is None:
            told = f"{name} names {one['token']!r} as {role}, which is no token of its tokenizer"
            found.append(Verdict("special tokens", False, told))
    for role, side in (("bos", "before"), ("eos", "behind")):
        asked, token = folder["stated_around"].get(role), folder["special"].get(role, {}).get("token")
        if asked is not None and folder[side] is not None and asked != (token in folder[side]):
            does = f"writes {_quoted(folder[side])} {side} a text" if folder[side] else f"writes nothing {side} a text"
            told = f"{name}'s tokenizer_config.json says add_{role}_token: {str(asked).lower()}"
            found.append(Verdict("around a text", False, f"{told}, and its tokenizer.json {does}, which rules"))
    whys: dict[str, list[str]] = {}
    for talk, why in folder["template"]["refused"].items():
        whys.setdefault(why, []).append(talk)
    found += [Verdict("chat template", False, f"{name}'s does not write {', '.join(talks)}: {why}")
              for why, talks in whys.items()]  # fmt: skip
    return found


def _quoted(tokens: Sequence[str]) -> str:
    return ", ".join(map(repr, tokens))


def _vocabulary(pair: Document, host: Document) -> Verdict:
    mine, theirs, how = pair["host"], pair["other"], pair["vocabulary"]
    if how["kind"] == "same":
        tokens = counted(host["tokens"], "token")
        return Verdict("vocabulary", True, f"{theirs} has the same as {mine}: {tokens} at the same ids")
    if how["kind"] == "different":
        return Verdict("vocabulary", False, f"{theirs} has another: {how['why_different']}")
    told = [f"{how['same_ids']:,} of {mine}'s {host['tokens']:,} tokens are at the same id"]
    if how["other_ids"]:
        told.append(f"{how['other_ids']:,} at another")
    told += [f"{who} alone has {_listed(how[key], how[count])}"
             for who, key, count in ((mine, "added_only_host", "only_host"), (theirs, "added_only_other", "only_other"))
             if how[count]]  # fmt: skip
    if how["own_tokens_that_differ"]:
        own = f"{how['own_tokens_that_differ']:,} of the model's own tokens differ"
        told.append(f"{own}, within the {CORE_TOLERANCE:.0%} that fuse takes")
    return Verdict("vocabulary", False, f"{theirs} has the same as {mine} up to added tokens: {', '.join(told)}")


def _listed(added: Document, count: int) -> str:
    """3 tokens (<a>, <b>, <c>)."""
    named = [repr(token) for token in added["first"][:NAMED]]
    more = ", ..." if count > len(named) else ""
    return counted(count, "token") + (f" ({', '.join(named)}{more})" if named else "")


def _recipe(pair: Document, host: Document, other: Document) -> Verdict:
    """What a recipe of the two needs."""
    how, mine, theirs = pair["vocabulary"], pair["host"], pair["other"]
    if how["kind"] == "different":
        eyes = "" if other["image"]["token"] is None else (
            f"; its encoder can stand beside {mine}'s as an encoder branch with a `bridge`"
        )  # fmt: skip
        return Verdict("recipe", False, f"leave {theirs} out of `members`: no merge mixes two vocabularies{eyes}")
    if pair["refused"]:
        return Verdict("recipe", False, f"`fuse merge` refuses their language models: {pair['refused']}")
    rows = host["embedding"]["rows"]
    if how["kind"] == "same":
        padded = "" if rows == other["embedding"]["rows"] else (
            f", though {mine} stores {rows:,} rows and {theirs} {other['embedding']['rows']:,}"
        )  # fmt: skip
        return Verdict("recipe", True, f"needs nothing: every token has its row in {theirs}{padded}")
    text = f"`embeddings: merge` mixes {pair['shared_rows']:,} of {rows:,} rows and keeps {mine}'s others"
    lacking = how["added_only_other"]["count"]
    if not lacking:
        return Verdict("recipe", True, f"{text}; {theirs} has no added token that {mine} lacks")
    need = pair["template"]["writes_only_other"]
    why = f", and {theirs}'s template writes {need[0]!r}" if need else f", if {theirs}'s are to be read"
    return Verdict("recipe", False, f"{text}; `embeddings: union` adds {counted(lacking, 'token')}{why}")


def _special(pair: Document, host: Document, other: Document) -> Verdict:
    mine, theirs = pair["host"], pair["other"]
    special = {role: how for role, how in pair["special"].items() if role != "image"}
    differ = [role for role, how in special.items() if not (how["token"] and how["id"])]
    if differ:
        told = [
            f"{role} is {_token(host['special'][role])} in {mine} and {_token(other['special'][role])} in {theirs}"
            for role in differ
        ]
        return Verdict("special tokens", False, "; ".join(told))
    roles = ", ".join(special) or "none that both name"
    if pair["same_ends"] is False:
        ends = " and ".join(f"{_ids(one['ends'])} in {one['name']}" for one in (host, other))
        return Verdict("special tokens", False, f"an answer ends at {ends}; the host's are kept")
    return Verdict("special tokens", True, f"{theirs} and {mine} agree: {roles}")


def _token(one: Document) -> str:
    if one["token"] is None:
        return f"id {one['id']}, which no token has"
    return f"{one['token']!r} ({'no id' if one['id'] is None else one['id']})"


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))


def _image(pair: Document, host: Document, other: Document) -> list[Verdict]:
    how = pair["image"]
    if how is None:
        return []
    if how["token"] and how["id"]:
        return [Verdict("image", True, f"{pair['other']} writes {_token(host['image'])} for one, as {pair['host']}")]
    told = f"{_token(host['image'])} in {pair['host']} and {_token(other['image'])} in {pair['other']}"
    rule = "" if how["token"] else "; rows are matched by token, not by role, so neither is mixed into the other"
    return [Verdict("image", False, f"one is {told}{rule}")]


def _cutting(pair: Document, host: Document, other: Document) -> Verdict:
    how, mine, theirs = pair["cutting"], pair["host"], pair["other"]
    if how["same"] is None:
        slow = next(one for one in (host, other) if not one["parts"])
        text = f"not compared: {slow['name']} has only {slow['tokenizer']}, whose class decides how text is cut"
        return Verdict("cutting", False, text)
    flags = how["flags_that_differ"]
    told = []
    for name in how["parts_that_differ"]:
        one, two = host["parts"][name]["word"], other["parts"][name]["word"]
        told.append(f"the {PARTS[name]}" + (f" ({one} in {mine}, {two} in {theirs})" if one != two else f" ({one})"))
    told += [f"how {_listed(flags, flags['count'])} are found in a text"] if flags["count"] else []
    if told:
        return Verdict("cutting", False, f"{theirs}'s tokenizer.json differs from {mine}'s in {', '.join(told)}")
    return Verdict("cutting", True, f"{theirs} cuts text as {mine} does")


def _around(pair: Document, host: Document, other: Document) -> list[Verdict]:
    if pair["cutting"]["same_around"] is not False:
        return []
    told = [f"{one['name']} {_written(one)}" for one in (host, other)]
    return [Verdict("around a text", False, f"{' and '.join(told)}; the host's way is kept")]


def _written(folder: Document) -> str:
    sides = [f"{_quoted(folder[side])} {side} it" for side in ("before", "behind") if folder[side]]
    return f"writes {' and '.join(sides)}" if sides else "writes nothing"


def _template(pair: Document, host: Document, other: Document) -> Verdict:
    how, mine, theirs = pair["template"], pair["host"], pair["other"]
    if how["same_text"] is None:
        without = [one["name"] for one in (host, other) if one["template"]["origin"] == "none"]
        both = len(without) == 2
        return Verdict("chat template", both, f"neither {mine} nor {theirs} has one" if both else
                       f"{without[0]} has none; `prompt: {{template: {theirs if without[0] == mine else mine}}}` "
                       "names whose is taken")  # fmt: skip
    if how["same_text"]:
        return Verdict("chat template", True, f"{theirs} has the same as {mine}")
    differ = [name for name, same in how["same_prompts"].items() if not same]
    if not differ and how["same_prompts"]:
        told = f"another text in {theirs} than in {mine}, which writes the same prompts"
        return Verdict("chat template", True, f"{told} ({', '.join(how['same_prompts'])})")
    if not differ:
        return Verdict("chat template", False, f"no conversation is written by both {mine}'s and {theirs}'s")
    told = f"{theirs}'s writes other prompts than {mine}'s ({', '.join(differ)})"
    return Verdict("chat template", False, f"{told}; `prompt: {{template: {theirs}}}` takes {theirs}'s")


def _text(document: Document, pair: Document) -> list[Verdict]:
    if "text" not in document:
        return []
    mine, theirs = (document["text"]["folders"][pair[who]] for who in ("host", "other"))
    if theirs["first"] is None:
        tokens = counted(theirs["tokens"], "token")
        return [Verdict("text", True, f"{pair['other']} makes the same {tokens} of it as {pair['host']}")]
    told = f"{pair['other']} makes {counted(theirs['tokens'], 'token')} of it and {pair['host']} {mine['tokens']:,}"
    share = f"{theirs['same']:.1%} of {pair['host']}'s are the same, {theirs['cut']:.1%} are cut alike"
    return [Verdict("text", False, f"{told}; {share}; they part at letter {theirs['first']:,}")]
