"""Fuzz what reads files from strangers: the only outcomes allowed are a value that an oracle confirms, or a FuseError.

    python tools/fuzz.py --inputs 100000                  # all readers, by hypothesis; a JSON document on stdout
    python tools/fuzz.py --inputs 5000 --reader header    # one of header, index, recipe, config, tokenizer
    python tools/fuzz.py --atheris header -max_total_time=600 corpus   # guided by coverage; the rest is libFuzzer's

Inputs are valid documents with changes of their structure or of their bytes, and seldom anything at all. Every input
has SECONDS of the processor, and ten times as many on the clock. Exit code 1 where an input does anything else; it is
in the document, made small, as base64 of zlib.
"""

import argparse
import base64
import inspect
import json
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_readers import Reader, readers
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from fuse.errors import FuseError

SECONDS = 5
BATCH = 2000  # inputs that hypothesis remembers at a time
SHARES = {"header": 40, "index": 20, "recipe": 20, "config": 15, "tokenizer": 5}
CLOCKS = {signal.ITIMER_PROF: signal.SIGPROF, signal.ITIMER_REAL: signal.SIGALRM}
MOST_CRASHES = 5  # of one reader; then it is given up


class Strange(Exception):
    """The reader did what no reader may: another exception, too slow, or a value that the oracle does not confirm."""


class _TooSlow(BaseException):
    pass


def attempt(reader: Reader, data: bytes) -> str:
    """One input: "value" or "refused". Raises Strange for anything else."""

    def late(*_: object) -> None:
        raise _TooSlow

    before = {number: signal.signal(number, late) for number in CLOCKS.values()}
    for clock, seconds in zip(CLOCKS, (SECONDS, 10 * SECONDS), strict=True):
        signal.setitimer(clock, seconds)
    try:
        value = reader.read(data)
    except FuseError as error:
        return _told(error)
    except _TooSlow:
        raise Strange(f"takes more than {SECONDS} s") from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise Strange(f"{type(error).__name__}: {error} ({Path(last.filename).name}: {last.name})"[:400]) from None
    finally:
        for clock, number in CLOCKS.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])
    if told := reader.agrees(data, value):
        raise Strange(told[:400])
    return "value"


def _told(error: FuseError) -> str:
    """What a refusal must be: a problem in words, exit code 2 or 3, and nothing that drives a terminal."""
    text = str(error)
    if not error.problem or error.exit_code not in {2, 3} or any(ord(c) < 32 and c != "\n" for c in text):
        raise Strange(f"refuses with {text!r} and exit code {error.exit_code}"[:400])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Strange(f"refuses with what cannot be printed: {text!r}"[:400]) from None
    return "refused"


def fuzz(name: str, reader: Reader, inputs: int, first_seed: int) -> dict[str, Any]:
    """Try as many inputs on one reader. Returns counts, the slowest in seconds of the processor, and crashes."""
    counts: Counter[str] = Counter()
    slowest, crashes, number = 0.0, [], first_seed

    def once(data: bytes) -> None:
        nonlocal slowest, smallest
        counts["inputs"] += 1
        begin = time.process_time()
        try:
            counts[attempt(reader, data)] += 1
        except Strange as error:
            smallest = {"reader": name, "what": str(error), "input": base64.b64encode(zlib.compress(data)).decode()}
            raise
        finally:
            slowest = max(slowest, time.process_time() - begin)

    while counts["inputs"] < inputs and len(crashes) < MOST_CRASHES:
        smallest: dict[str, str] = {}
        how = settings(
            max_examples=min(BATCH, inputs - counts["inputs"]), deadline=None, database=None,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck), print_blob=False,
            report_multiple_bugs=False,
        )  # fmt: skip
        try:
            seed(number)(how(given(reader.inputs)(once)))()
        except (Strange, Flaky):  # Flaky: it took too long once
            crashes.append(smallest)
        number += 1
    return {**dict(sorted(counts.items())), "slowest_s": round(slowest, 3), "crashes": crashes}


def main() -> int:
    """Run, print one JSON document, and return the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=10_000)
    options.add_argument("--reader", choices=list(SHARES))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--atheris", choices=list(SHARES), help="needs `pip install fuse-mllm[fuzz]`")
    chosen, rest = options.parse_known_args()
    shares = {chosen.reader: 1} if chosen.reader else SHARES
    with tempfile.TemporaryDirectory() as folder:
        table = readers(Path(folder))
        if chosen.atheris:
            return _guided(table[chosen.atheris], rest)
        begin = time.perf_counter()
        found = {
            name: fuzz(name, table[name], -(-chosen.inputs * share // sum(shares.values())), chosen.seed)
            for name, share in shares.items()
        }
    crashes = [crash for one in found.values() for crash in one.pop("crashes")]
    seconds = round(time.perf_counter() - begin, 1)
    total = sum(one["inputs"] for one in found.values())
    sys.stdout.write(json.dumps(
        {"inputs": total, "seed": chosen.seed, "seconds": seconds, "readers": found, "crashes": crashes}, indent=1
    ) + "\n")  # fmt: skip
    return 1 if crashes else 0


def _guided(reader: Reader, rest: list[str]) -> int:
    """libFuzzer, guided by the coverage of `fuse`: the same inputs, drawn from its bytes."""
    import atheris  # pyright: ignore[reportMissingImports]

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(reader.inputs)
    def once(data: bytes) -> None:
        attempt(reader, data)

    for module in [one for name, one in sys.modules.items() if name.startswith("fuse.")]:
        for function in [one for one in vars(module).values() if inspect.isfunction(one)]:
            if function.__module__ == module.__name__:
                atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *rest], once.hypothesis.fuzz_one_input)  # pyright: ignore[reportFunctionMemberAccess]
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
