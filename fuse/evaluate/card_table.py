"""The table of an evaluation in a folder's README.md, between two comments, so that the next one replaces it."""

import os
import stat
import tempfile
from pathlib import Path

from fuse.errors import MachineError, RecipeError

NAME = "README.md"
BEGIN, END = "<!-- fuse eval: begin -->", "<!-- fuse eval: end -->"
MAX_BYTES = 16 << 20
NO_CARD = "--no-card leaves it alone"


def check_card(folder: Path) -> None:
    """Refuse what `write_table` would refuse, before anything is computed."""
    _read(folder / NAME)
    if not os.access(folder, os.W_OK):
        raise MachineError("may not be written", where=folder, hint=NO_CARD)


def write_table(folder: Path, markdown: str) -> None:
    """Put a table into the folder's README.md: in place of the last one, else at the end.

    Nothing else in the file changes, and it is replaced whole or not at all. A folder without one gets a README.md of
    a title and the table. Raises RecipeError when README.md is a link, no plain file, not UTF-8, over 16 MB, or holds
    one of the two comments without the other or more than once; MachineError when it cannot be written.
    """
    file = folder / NAME
    found = _read(file)
    text = f"# {folder.resolve().name}\n" if found is None else found
    newline = "\r\n" if "\r\n" in text else "\n"
    block = f"{BEGIN}\n## Evaluation\n\n{markdown.strip()}\n{END}".replace("\n", newline)
    if BEGIN in text:
        new = text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]
    else:
        new = f"{text.rstrip()}{newline * 2}{block}{newline}" if text.strip() else f"{block}{newline}"
    if new != found:
        _replace(file, new)


def _read(file: Path) -> str | None:
    """The text of the card, its line ends as they are; None where there is none."""
    try:
        mode = file.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise RecipeError("is a link; the table would change what it leads to", where=file, hint=NO_CARD)
        if not stat.S_ISREG(mode):
            raise RecipeError("is not a plain file", where=file, hint=NO_CARD)
        if file.stat().st_size > MAX_BYTES:
            raise RecipeError(f"is larger than {MAX_BYTES:,} bytes", where=file, hint=NO_CARD)
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 at byte {error.start}", where=file, hint=NO_CARD) from None
    except OSError as error:
        raise MachineError(f"cannot be read ({error.strerror})", where=file, hint=NO_CARD) from None
    counts = (text.count(BEGIN), text.count(END))
    if counts not in {(0, 0), (1, 1)} or text.find(BEGIN) > text.find(END):
        raise RecipeError(f"does not hold {BEGIN!r} once and {END!r} once after it", where=file,
                          hint=f"delete these comments and what lies between them; {NO_CARD}")  # fmt: skip
    return text


def _replace(file: Path, text: str) -> None:
    """Write beside the file and rename over it; permissions stay those of the file, or of any new one."""
    partial = None
    try:
        mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o666 & ~_umask()
        handle, name = tempfile.mkstemp(prefix=f".{NAME}.", suffix=".partial", dir=file.parent)
        partial = Path(name)
        with os.fdopen(handle, "wb") as out:
            out.write(text.encode())
            out.flush()
            os.fsync(out.fileno())
        partial.chmod(mode)
        partial.replace(file)
    except OSError as error:
        raise MachineError(f"cannot be written ({error.strerror})", where=file, hint=NO_CARD) from None
    finally:
        if partial:
            partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
