"""A headless Chromium that a test drives as a person would: it clicks where things are, and types."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0", "--no-proxy-server", "--disable-features=OptimizationHints,MediaRouter,Translate",
)  # fmt: skip
SECONDS = 60  # of a machine that is busy
BY_TEXT = """(text, within) => {
  const seen = e => e.getClientRects().length && getComputedStyle(e).visibility !== 'hidden';
  const all = [...document.querySelectorAll(within)].filter(e => seen(e) && e.innerText.trim() === text);
  return all.sort((a, b) => a.querySelectorAll('*').length - b.querySelectorAll('*').length)[0];
}"""


class Tab:
    """One page. asked: the addresses that it fetched, sockets included. errors: what it wrote of errors."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.asked: list[str] = []
        self.errors: list[str] = []

    def call(self, method: str, **given: Any) -> Any:
        """A command of the DevTools protocol, and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": given}))
        ends = time.monotonic() + SECONDS
        while True:
            message = json.loads(self._socket.recv(timeout=max(0.1, ends - time.monotonic())))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif message.get("method") == "Network.webSocketCreated":
            self.asked.append(told["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:500])
        elif message.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def open(self, address: str) -> None:
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)

    def value(self, script: str) -> Any:
        """What an expression of the page gives."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, script: str, what: str = "") -> Any:
        """What an expression gives, once it gives something."""
        ends = time.monotonic() + SECONDS
        while not (found := self.value(script)):
            assert time.monotonic() < ends, f"waited for {what or script}; the page says: {self.text()[-3000:]}"
            time.sleep(0.05)
        return found

    def text(self) -> str:
        return self.value("document.body ? document.body.innerText : ''")

    def sees(self, text: str) -> None:
        """Wait until the page shows a text."""
        self.wait(f"document.body?.innerText.includes({json.dumps(text)})", repr(text))

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element, which nothing may cover."""
        self._press(f"document.querySelector({json.dumps(selector)})", selector)

    def click_text(self, text: str, within: str = "*") -> None:
        """As `click`, of the smallest element with the text."""
        self._press(f"({BY_TEXT})({json.dumps(text)}, {json.dumps(within)})", f"{text!r} in {within}")

    def _press(self, element: str, what: str) -> None:
        self.wait(f"!!({element})", what)
        self.value(f"({element}).scrollIntoView({{block: 'center'}})")
        middle = (
            f"(() => {{ const e = {element}, r = e.getBoundingClientRect();"
            "const x = r.x + r.width / 2, y = r.y + r.height / 2, top = document.elementFromPoint(x, y);"
            "return r.width && top && (e.contains(top) || top.contains(e)) ? [x, y] : null })()"
        )
        x, y = self.wait(middle, f"{what} to lie open")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Put the text in place of what a field holds."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def upload(self, selector: str, file: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the window a size, and the reader a preference."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        wanted = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=wanted)

    def picture(self, file: Path) -> Path:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return file


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A page of a new Chromium. profile: a folder for it, which is not there yet."""
    from websockets.sync.client import connect

    command = [str(FOUND), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        place, ends = profile / "DevToolsActivePort", time.monotonic() + SECONDS
        while not (place.exists() and place.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < ends, "Chromium did not start"
            time.sleep(0.05)
        port = place.read_text().splitlines()[0]
        with connect(f"ws://127.0.0.1:{port}{place.read_text().splitlines()[1]}", max_size=None) as root:
            root.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            found = json.loads(root.recv(timeout=SECONDS))["result"]["targetInfos"]
        target = next(one["targetId"] for one in found if one["type"] == "page")
        with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(SECONDS)
