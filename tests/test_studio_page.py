"""The studio's page as nicegui builds it, who may open it, and what its server does to the network."""

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fuse.studio.guard import POLICY, REFUSED, Guard

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "recipes" / "zoo"
needs_nicegui = pytest.mark.skipif(find_spec("nicegui") is None, reason="nicegui is not installed (the extra studio)")
Heads = list[tuple[bytes, bytes]]


def ask(
    kind: str = "http", query: str = "", path: str = "/", method: str = "GET", **headers: str
) -> list[dict[str, Any]]:
    """What a guarded application answers; one that is let in says so."""
    said: list[dict[str, Any]] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        start = "http.response.start" if kind == "http" else "websocket.accept"
        await send({"type": start, "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    found = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": found, "method": method}
    asyncio.run(Guard(inside, "secret", "studio")(scope, receive, send))
    return said


def heads(said: list[dict[str, Any]]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in said[0]["headers"]}


class TestGuard:
    def test_the_key_becomes_a_cookie(self) -> None:
        said = ask(query="a=1&key=secret", path="/x y")
        assert said[0]["status"] == 303 and heads(said)["location"] == "/x%20y?a=1"
        assert heads(said)["set-cookie"] == "studio=secret; Path=/; HttpOnly; SameSite=Strict"
        assert heads(ask(query="key=secret", path="//elsewhere.example"))["location"] == "/elsewhere.example"

    def test_with_it_everything_is_let_in(self) -> None:
        said = ask(cookie="a=b; studio=secret", host="h:1", origin="http://h:1")
        assert said[0]["status"] == 200 and heads(said)["content-security-policy"] == POLICY
        assert heads(said)["x-content-type-options"] == "nosniff"
        assert (
            ask("websocket", cookie="studio=secret", host="h:1", origin="http://h:1")[0]["type"] == "websocket.accept"
        )

    @pytest.mark.parametrize(
        "given",
        [
            {}, {"query": "key=wrong"}, {"query": "key="}, {"cookie": "studio=wrong"}, {"cookie": "other=secret"},
            {"cookie": "studio=secret", "host": "h:1", "origin": "http://h:2"},
            {"cookie": "studio=secret", "host": "h:1", "origin": "null"}, {"cookie": '"[;;'},
            {"query": "key=secret", "method": "POST"},
        ],
    )  # fmt: skip
    def test_nobody_else_is(self, given: dict[str, str]) -> None:
        said = ask(**given)  # pyright: ignore[reportArgumentType]
        assert said[0]["status"] == 403 and said[1]["body"].decode() == REFUSED
        assert ask("websocket", **given) == [{"type": "websocket.close", "code": 1008}]  # pyright: ignore


@needs_nicegui
def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tab is built, and a member that is added reaches form, text and plan."""
    monkeypatch.setenv("NICEGUI_STORAGE_PATH", str(tmp_path / "storage"))
    from nicegui import ui
    from nicegui.testing.user_simulation import user_simulation

    from fuse.studio import page
    from fuse.studio.state import Studio

    studio = Studio(tmp_path, ZOO)
    jobs = threading.Thread(target=studio.jobs.run)

    async def visit() -> None:
        async with user_simulation(lambda: page.build(studio)) as user:
            await user.open("/")
            for text in ("fuse studio", "Members", "Choose or drop an image", "No plan yet"):
                await user.should_see(text)
            user.find(marker="member").type("hue")
            user.find(marker="add").click()
            headline = "This recipe makes a llava model: 98 tensors, 1.9 MB."
            await user.should_see(headline, retries=200)
            assert user.find(marker="recipe").elements.pop().value == studio.text  # pyright: ignore
            with user:
                marked = [one for one in ui.context.client.elements.values() if "weight-hue" in one._markers]
            assert [one.value for one in marked] == [1.0]  # pyright: ignore[reportAttributeAccessIssue]
            await user.should_see("copied from hue", retries=100)

    jobs.start()
    try:
        asyncio.run(visit())
    finally:
        studio.jobs.close()
        jobs.join()
    assert not (Path.cwd() / ".nicegui").exists()


HOOK = """
import atexit, json, sys
TOLD = []
def hook(event, given):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"}:
        TOLD.append([event, [str(one) for one in given if "socket" not in type(one).__module__]])
sys.addaudithook(hook)
atexit.register(lambda: open("told.json", "w").write(json.dumps(TOLD)))
"""


@needs_nicegui
def test_its_server_speaks_to_this_machine_alone(tmp_path: Path) -> None:
    """Python's audit events of the whole process: it binds one loopback port and connects to nothing."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "HF_HUB_OFFLINE": "0", "TMPDIR": str(tmp_path)}
    env["PYTHONDONTWRITEBYTECODE"] = "1"  # of the hook
    command = [sys.executable, "-m", "fuse", "studio", str(ZOO / "hue"), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().removeprefix("studio: http://").strip()
    host, _, query = address.partition("/")
    port = int(host.removeprefix("127.0.0.1:"))
    status, heads, _ = get(port, f"/{query}")
    assert status == 303
    cookie = {"Cookie": heads["set-cookie"].partition(";")[0]}
    status, heads, body = get(port, "/", cookie)
    assert status == 200 and b"http" not in outside(body)
    assert heads["content-security-policy"] == POLICY
    assert get(port, "/")[0] == 403
    for place in ("/reports/1/report.html", "/reports/1/%2e%2e/%2e%2e/storage", "/etc/passwd", "/..%2f..%2fetc/passwd"):
        assert get(port, place, cookie)[0] == 404
    taken = subprocess.run([*command[:-1], str(port)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                           capture_output=True, text=True, check=False)  # fmt: skip
    hint = f"fuse: port {port} of 127.0.0.1 cannot be had (Address already in use) (--port 0 takes a free one)\n"
    assert (taken.returncode, taken.stderr) == (4, hint)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert ["socket.bind", ["('127.0.0.1', 0)"]] in told
    assert [one for one in told if one[0] != "socket.bind" and "127.0.0.1" not in one[1][0]] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sitecustomize.py", "told.json"]


def get(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    found = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, found, answer.read()


def outside(page: bytes) -> bytes:
    """The page without comments and names of XML's namespaces, which are no addresses that a browser fetches."""
    return re.sub(rb"<!--.*?-->|/\*.*?\*/|http://www\.w3\.org", b"", page, flags=re.DOTALL)
