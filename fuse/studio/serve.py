"""The page's server: a thread beside the main one, which does the jobs, until Ctrl-C."""

import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fuse import process
from fuse.errors import MachineError
from fuse.studio.guard import PARAMETER, Guard
from fuse.studio.state import Studio

REPORT = re.compile(r"report\.html|[0-9]{2,}-[a-z0-9-]+\.png")
SECONDS = 20  # for the server to come up, and to end


def application(studio: Studio, key: str, port: int) -> Any:
    """The page and its reports as an ASGI application, behind the guard. No file is served but nicegui's own and the
    pages and pictures of reports that were made here."""
    os.environ["NICEGUI_STORAGE_PATH"] = str(studio.scratch / "storage")  # read when nicegui is imported
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, Response
    from nicegui import ui

    from fuse.studio import page

    logging.getLogger("nicegui").setLevel(logging.ERROR)  # it warns of every address that is none
    app = FastAPI(openapi_url=None)

    @app.get("/reports/{number}/{name}")
    def report(number: int, name: str) -> Response:
        file = studio.scratch / "reports" / str(number) / name
        return FileResponse(file) if REPORT.fullmatch(name) and file.is_file() else Response(status_code=404)

    ui.page("/")(lambda: page.build(studio))
    ui.run_with(app, title="fuse studio", dark=None, show_welcome_message=False, reconnect_timeout=30)
    return Guard(app, key, f"fuse_studio_{port}")


def serve(studio: Studio, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the page and do its jobs until Ctrl-C; `say` gets the address once it answers.

    port: 0 takes a free one. Returns at Ctrl-C where nothing runs; else raises what the signals raise, and MachineError
    for an address that cannot be had.
    """
    process.OURS = False  # other threads need memory while a job is held to little
    listener = _listener(host, port)
    port = listener.getsockname()[1]
    key = secrets.token_urlsafe(24)
    server, thread = _started(application(studio, key, port), listener, host)
    try:
        say(f"http://{f'[{host}]' if ':' in host else host}:{port}/?{PARAMETER}={key}")
        studio.jobs.run()
    except KeyboardInterrupt:
        if studio.jobs.interrupted:
            raise
    finally:
        server.should_exit = True
        thread.join(SECONDS)


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        told = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise MachineError(f"port {port} of {host} cannot be had ({told})", hint="--port 0 takes a free one") from None


def _started(app: Any, listener: socket.socket, host: str) -> tuple[Any, threading.Thread]:
    import uvicorn

    config = uvicorn.Config(app, host=host, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)

    def run() -> None:
        with suppress(SystemExit):  # of a server that did not come up, which is told by the main thread
            server.run(sockets=[listener])

    thread = threading.Thread(target=run, name="page", daemon=True)
    thread.start()
    ends = time.monotonic() + SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > ends:
            raise MachineError("the page's server did not come up")
        time.sleep(0.02)
    return server, thread


def open_browser(address: str) -> None:
    """Show the page in the user's browser, where there is one."""
    import webbrowser

    webbrowser.open(address)
