"""Ask `transformers serve` about a picture, through the API of OpenAI.

    python tools/clients/serve.py portable photo.png "What does the sign say?"

Starts the server of the environment that runs this (`pip install transformers[serving]`; it needs no `fuse`) over a
portable folder, or over one of a class that transformers has, on a free port of this machine alone. Asks once for a
whole answer and once for a stream, prints both as one JSON document, and stops the server.
"""

import argparse
import base64
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds until the model must have been loaded
TYPES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp", ".gif": "gif", ".bmp": "bmp"}


def main() -> None:
    """The answers on stdout; exit code 1 where the server does not start or refuses."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    parser.add_argument("--max-tokens", type=int, default=32)
    given = parser.parse_args()
    folder = given.folder.resolve()
    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--trust-remote-code"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*map(str, command), "--device", "cpu", "--port", str(port)], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait(server, f"http://localhost:{port}/health")
            asked = body(folder, given.picture, given.question, given.max_tokens)
            address = f"http://localhost:{port}/v1/chat/completions"
            whole = json.loads(post(address, asked))
            streamed = pieces(post(address, {**asked, "stream": True}))
        except (OSError, RuntimeError) as error:
            log.seek(0)
            sys.exit(f"serve: {error}\n{log.read()[-3000:]}")
        finally:
            server.terminate()
            server.wait(30)
    found = {"answer": whole["choices"][0]["message"]["content"], "streamed": streamed, "usage": whole["usage"]}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def wait(server: subprocess.Popen[str], address: str) -> None:
    """Until the server answers; it does when the model is loaded. Raises RuntimeError where it ends or takes long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server does not answer after {PATIENCE} seconds")


def body(folder: Path, picture: Path, question: str, most: int) -> dict[str, Any]:
    """A request as clients of OpenAI write it: the picture comes within its address."""
    kind = TYPES.get(picture.suffix.lower(), "png")
    address = f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": question}]
    return {"model": str(folder), "max_tokens": most, "messages": [{"role": "user", "content": parts}]}


def post(address: str, asked: dict[str, Any]) -> str:
    """What the server answers. Raises RuntimeError with its words where it refuses."""
    request = urllib.request.Request(address, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{error.code} {error.read().decode()[:500]}") from None


def pieces(stream: str) -> list[str]:
    """The pieces of an answer, in the order of a stream of server-sent events."""
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    told = [event["choices"][0]["delta"].get("content") for event in events if "choices" in event]
    return [one for one in told if one]


if __name__ == "__main__":
    main()
