"""llama.cpp's converter as a child process: what it supports, and one conversion. The script is the user's own."""

import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fuse.errors import MachineError, RecipeError, in_a_line, one_line

Half = Literal["TEXT", "MMPROJ"]
LAST = 6  # lines of the converter's that are told when it fails
MAGIC, VERSIONS = b"GGUF", range(2, 4)


@dataclass(frozen=True)
class Converter:
    """convert_hf_to_gguf.py of a llama.cpp. python: what runs it; None for the Python that this is."""

    script: Path
    python: str | None

    def run(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Run it, offline; both its streams in `stdout`. Raises MachineError where it cannot be started."""
        runner = [self.python] if self.python else [sys.executable, "-m", "fuse.export.gguf_run"]
        command = [*runner, str(self.script), *map(str, arguments)]
        try:
            return subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
                stdin=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        except OSError as error:
            raise MachineError(f"cannot be started ({error.strerror})", where=runner[0]) from None


def find_converter(script: Path | None, python: str | None) -> Converter:
    """The converter that the user names. Raises RecipeError where there is none."""
    hint = "--converter LLAMA_CPP/convert_hf_to_gguf.py, of your llama.cpp"
    if script is None:
        raise RecipeError("llama.cpp's converter is not named", hint=hint)
    if not script.is_file():
        raise RecipeError("there is no such converter", where=script, hint=hint)
    return Converter(script.resolve(), python)


def supported(converter: Converter) -> Mapping[Half, frozenset[str]]:
    """The architectures that it converts: language models, and encoders with their projectors.

    Raises MachineError where it fails or tells none.
    """
    ran = converter.run("--print-supported-models")
    if ran.returncode:
        raise failed(converter, ran)
    found: dict[str, set[str]] = {"TEXT": set(), "MMPROJ": set()}
    at = ""
    for line in ran.stdout.splitlines():
        head, name = re.search(r"\b(TEXT|MMPROJ) models", line), re.search(r"- (\w+)\s*$", line)
        at = head[1] if head else at
        if name and at:
            found[at].add(name[1])
    if not found["TEXT"]:
        told = "tells no supported models"
        raise MachineError(told, where=converter.script, hint="newer ones have --print-supported-models")
    return {"TEXT": frozenset(found["TEXT"]), "MMPROJ": frozenset(found["MMPROJ"])}


def architecture(config: Mapping[str, Any], half: Half) -> str:
    """What the converter goes by: the inner config's architecture where it has one, else the folder's."""
    inner = config.get("text_config" if half == "TEXT" else "vision_config")
    for told in (inner, config):
        names = told.get("architectures") if isinstance(told, Mapping) else None
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
    return ""


def convert(converter: Converter, folder: Path, outfile: Path, outtype: str, half: Half) -> Path:
    """Convert a folder; the file that it became.

    outfile: where to, in a folder of its own; {ftype} in its name becomes what the converter chose. Raises MachineError
    with the converter's exit code and last lines where it fails, and where it leaves another number of files than one.
    """
    before = set(outfile.parent.iterdir())
    more = ["--mmproj"] if half == "MMPROJ" else []
    ran = converter.run(folder, "--outfile", outfile, "--outtype", outtype, *more)
    if ran.returncode:
        raise failed(converter, ran)
    made = sorted(set(outfile.parent.iterdir()) - before)
    if len(made) != 1:
        names = ", ".join(path.name for path in made) or "nothing"
        raise MachineError(f"ended well and wrote {names}", where=converter.script, more=last_lines(ran.stdout))
    check_gguf(made[0], converter)
    return made[0]


def check_gguf(file: Path, converter: Converter) -> int:
    """The number of tensors in a GGUF. Raises MachineError for a file that is none, or that holds none."""
    if tensors := tensors_in(file):
        return tensors
    raise MachineError("ended well and wrote no GGUF with tensors", where=converter.script)


def tensors_in(file: Path) -> int:
    """The number of tensors that the header of a GGUF tells; 0 for a file that is none."""
    with file.open("rb") as opened:
        start = opened.read(24)
    if len(start) < 24 or not start.startswith(MAGIC):
        return 0
    version, tensors, _ = struct.unpack("<IQQ", start[4:])
    return tensors if version in VERSIONS else 0


def failed(converter: Converter, ran: "subprocess.CompletedProcess[str]") -> MachineError:
    """What is said of a converter that failed: its exit code, or signal, and its last lines."""
    code = ran.returncode
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    lines = last_lines(ran.stdout)
    told = f"ended with {how}" + (f": {in_a_line(Exception(lines[-1].strip()))}" if lines else "")
    return MachineError(told, where=converter.script, more=lines[:-1])


def last_lines(text: str) -> list[str]:
    """The last lines that say something, each behind two spaces."""
    return [f"  {one_line(line.rstrip())}" for line in text.splitlines() if line.strip()][-LAST:]
