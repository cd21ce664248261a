"""The questions, in their order."""

from pathlib import Path

from fuse.branches.encoder_files import read_encoder
from fuse.errors import CheckpointError, RecipeError
from fuse.grafts.donor import open_donor
from fuse.names import mistake_in
from fuse.recipe_new import look
from fuse.recipe_new.answers import Answers, Eyes, Grafted, Named
from fuse.recipe_new.dialogue import Dialogue
from fuse.recipe_new.method import ask_method, ask_numbers
from fuse.recipe_new.wants import DTYPES, WANTS
from fuse.sizes import counted
from fuse.verdicts import judge_eyes

MIXED = "merge"


def ask_everything(dialogue: Dialogue) -> Answers:
    """All answers. Raises RecipeError and CheckpointError as `Dialogue.ask` does."""
    want = dialogue.choose("want", "What do you want?", {word: one.line for word, one in WANTS.items()}, "fuse")
    members = _ask_members(dialogue, want)
    host, names = members[0], [one.name for one in members]
    base = _ask_base(dialogue, members) if WANTS[want].base else None
    method = "linear"
    numbers: dict[str, float | dict[str, float]] = {"weights": dict.fromkeys(names, 1.0)}
    if len(members) > 1:
        method = ask_method(dialogue, len(members), base is not None)
        numbers = ask_numbers(dialogue, method, names, want)
    vision, mixed = _ask_eyes(dialogue, want, members)
    grafts = _ask_grafts(dialogue, host) if want == "graft" else ()
    needs_eyes = want == "encoder" or (not vision and any(graft.looks for graft in grafts))
    eyes = _ask_encoder(dialogue, members) if needs_eyes else None
    dtype = dialogue.choose("dtype", "In which dtype is the output written?", DTYPES, "same")
    dialogue.done()
    dtype = "" if dtype == "same" else dtype
    return Answers(want, members, base, method, numbers, vision, mixed, eyes, grafts, dtype)


def _ask_members(dialogue: Dialogue, want: str) -> tuple[Named, ...]:
    asked, found = WANTS[want], list[Named]()
    while len(found) < asked.most:
        enough = len(found) >= asked.least
        if enough and not dialogue.left("member") and dialogue.yes:
            break

        def read(answer: str, enough: bool = enough) -> Named | None:
            if not answer and enough:
                return None
            one = look.named(answer, [member.name for member in found])
            if twin := next((other.name for other in found if other.path == one.path), ""):
                raise RecipeError(f"{one.path!r} is {twin} already")
            if found:
                look.check_next(one, found[0], want)
            else:
                look.check_first(one, want)
            return one

        question = f"Member {len(found) + 1}, {asked.more if found else asked.first}: folder, hub id or NAME=PATH"
        one = dialogue.ask("member", question + "; nothing ends the list" * enough, read, "" if enough else None)
        if one is None:
            break
        dialogue.say(f"  {look.told(one)}")
        found.append(one)
    return tuple(found)


def _ask_base(dialogue: Dialogue, members: tuple[Named, ...]) -> Named | None:
    def read(answer: str) -> Named | None:
        if not answer:
            return None
        one = look.named(answer, [], only="base")
        look.check_base(one, members[0])
        return one

    question = "Base, the pretrained LLM that all come from; nothing where you do not have it"
    one = dialogue.ask("base", question, read, "")
    if one is not None:
        dialogue.say(f"  {look.told(one)}")
    return one


def _ask_eyes(dialogue: Dialogue, want: str, members: tuple[Named, ...]) -> tuple[tuple[str, ...] | None, bool]:
    """Whose encoders the output has, None where nobody sees; and whether encoders are merged."""
    seeing = [one.name for one in members if one.sees or one.sees is None]
    if want in {"fuse", "expert"}:
        return (tuple(seeing) if want == "fuse" else (members[0].name,)), False
    if want == "encoder" or not seeing:
        return (() if want == "encoder" and seeing else None), False
    choices = {name: f"encoder and projector of {name}" for name in seeing}
    if len(members) > 1 and len(seeing) == len(members):
        choices[MIXED] = "encoders and projectors are merged as well, into those of the first"
    if any(one.sees is None for one in members):
        choices["none"] = "they read text only"
    first = next((one.name for one in members if one.sees), "none" if "none" in choices else seeing[0])
    if len(choices) == 1:
        return (first,), False

    def check(word: str) -> None:
        opened = [one.member for one in members if one.member is not None]
        if word == MIXED and opened:
            judge_eyes(opened[0], opened[1:])

    chosen = dialogue.choose("eyes", "Whose eyes does the output have?", choices, first, check)
    if chosen == MIXED:
        return (seeing[0],), True
    return (None if chosen == "none" else (chosen,)), False


def _ask_encoder(dialogue: Dialogue, members: tuple[Named, ...]) -> Eyes:
    """An encoder, its projector, and which layer the projector reads; files on this disk are opened together."""

    def name(answer: str) -> str:
        if (wrong := mistake_in(answer)) or answer in {one.name for one in members}:
            raise RecipeError(f"an encoder cannot be called {answer!r}: {wrong or 'a member has this name'}")
        return answer

    called = dialogue.ask("encoder-name", "What is the encoder called?", name, "eyes")
    encoder = dialogue.ask("encoder", "Its folder or hub id, such as openai/clip-vit-large-patch14-336", _place)
    layer = dialogue.ask(
        "layer", "The layer that the projector reads: -1 the last, -2 the one before (LLaVA)", _layer, "-1"
    )

    def projector(answer: str) -> str:
        if not Path(answer).exists():
            raise RecipeError(f"there is no file {answer!r}", hint="a safetensors file, or a folder of `fuse import`")
        if Path(encoder).exists():
            entry = {"name": called, "encoder": encoder, "projector": answer, "layer": layer}
            files = read_encoder(entry, relative_to=Path.cwd())
            host = members[0].member
            if host is not None and files.hidden_size not in (0, host.basis.hidden_size):
                raise CheckpointError(
                    f"gives tokens of {files.hidden_size} numbers, and {host.name} reads {host.basis.hidden_size}",
                    where=answer, hint="a projector belongs to the language model that it was trained for",
                )  # fmt: skip
        return answer

    return Eyes(
        called, encoder, dialogue.ask("projector", "The projector: a safetensors file, or a folder", projector), layer
    )


def _place(answer: str) -> str:
    if not answer:
        raise RecipeError("an encoder is a folder or a hub id")
    look.is_here(answer)
    return answer


def _layer(answer: str) -> int:
    if not answer.removeprefix("-").isdecimal() or not -1000 <= int(answer) <= -1:
        raise RecipeError(f"{answer!r} is no layer counted from the end", hint="-1 is the last")
    return int(answer)


def _ask_grafts(dialogue: Dialogue, host: Named) -> tuple[Grafted, ...]:
    found: list[Grafted] = []
    while True:
        if found and not dialogue.left("graft") and dialogue.yes:
            return tuple(found)

        def read(answer: str) -> Grafted | None:
            if not answer and found:
                return None
            if not answer:
                raise RecipeError("a graft is a folder", hint="`fuse import` makes one of an official checkpoint")
            donor = open_donor(answer, Path.cwd())
            if donor.kind in {other.donor.kind for other in found}:
                raise RecipeError(f"there is a graft of kind {donor.kind} already", hint="two need names, by hand")
            why = donor.files.why_not(donor.config, host.member.basis) if host.member else ""
            if why:
                raise CheckpointError(f"{donor.kind} cannot be grafted into {host.name}: {why}", where=answer)
            return Grafted(answer, donor)

        question = "Another graft; nothing ends the list" if found else "The graft's folder, with graft.json or of PEFT"
        one = dialogue.ask("graft", question, read, "" if found else None)
        if one is None:
            return tuple(found)
        dialogue.say(f"  {one.donor.kind}: {counted(len(one.donor.tensors), 'tensor')}")
        found.append(one)
