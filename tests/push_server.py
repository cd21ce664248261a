"""A hub on this machine that takes uploads: repositories with branches and commits, LFS, and a local Xet storage."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, READER = "hf_writer", "hf_reader"
LFS = (".safetensors", ".gguf", ".png", "tokenizer.json")  # what the hub keeps as LFS


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """What a commit holds at a path. data: None of Xet's, whose bytes are in its storage."""

    size: int
    sha256: str
    data: bytes | None = None
    lfs: bool = False

    def told(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"rfilename": path, "size": self.size}
        if self.lfs:
            pointer = f"version 1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()
            lfs = {"size": self.size, "sha256": self.sha256, "pointerSize": len(pointer)}
            return found | {"blobId": git_id(pointer), "lfs": lfs}
        return found | {"blobId": git_id(self.data or b"")}


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        told = json.dumps([branch, len(self.commits), sorted((path, blob.sha256) for path, blob in files.items())])
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def at(self, revision: str) -> dict[str, Blob] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Hub:
    """asked: every request, as `METHOD path`. fails: request -> status that it is answered with, once. storage: Xet's."""

    storage: Path
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)
    damage: bool = False  # keep another byte than was sent
    beside: tuple[str, ...] = ()  # what somebody else writes there with every commit

    def env(self, home: Path, *, token: str = TOKEN, xet: bool = False) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "0" if xet else "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def make(self, repository: str, files: dict[str, bytes] | None = None, *, private: bool = False) -> Repository:
        made = self.repositories[repository] = Repository(private)
        blobs = {path: Blob(len(data), hashlib.sha256(data).hexdigest(), data) for path, data in (files or {}).items()}
        attributes = b"*.safetensors filter=lfs\n"
        made.commit("main", {".gitattributes": Blob(len(attributes), "", attributes), **blobs})
        return made

    def files(self, repository: str, revision: str = "main") -> dict[str, Blob]:
        """What is at a branch, but for what the hub writes itself; nothing of a repository that is not there."""
        found = self.repositories[repository].at(revision) if repository in self.repositories else None
        return {path: blob for path, blob in (found or {}).items() if path != ".gitattributes"}


Answer = tuple[int, Any]


class Asked:
    """One request, answered from the state of the hub."""

    def __init__(self, hub: Hub, method: str, target: str, headers: Any, body: bytes) -> None:
        self.hub, self.method, self.headers, self.body = hub, method, headers, body
        split = urlsplit(target)
        self.path, self.query = split.path, parse_qs(split.query)

    def answer(self) -> Answer:
        if (status := self.hub.fails.pop(f"{self.method} {self.path}", None)) is not None:
            return status, {"error": "not now"}
        for pattern, method, name in ROUTES:
            if method == self.method and (match := re.fullmatch(pattern, self.path)):
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if token not in {TOKEN, READER} and not name.startswith("put"):
                    return 401, {"error": "Invalid username or password."}
                if token == READER and self.method == "POST" and name != "validate":
                    return 403, {"error": "you only have read access"}
                return getattr(self, name)(*map(unquote, match.groups()))
        return 404, {"error": f"no such route: {self.method} {self.path}"}

    def json(self) -> Any:
        return json.loads(self.body)

    def create(self) -> Answer:
        told = self.json()
        name = f"{told['organization']}/{told['name']}"
        if name in self.hub.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
        self.hub.make(name, private=told.get("visibility") == "private" or bool(told.get("private")))
        return 200, {"url": f"{self.hub.url}/{name}", "name": name}

    def branch(self, repository: str, branch: str) -> Answer:
        held = self.hub.repositories[repository]
        if branch in held.branches:
            return 409, {"error": "Reference already exists"}
        held.branches[branch] = (self.json() or {}).get("startingPoint") or held.branches["main"]
        return 200, {}

    def about(self, repository: str, revision: str = "main") -> Answer:
        held = self.hub.repositories.get(repository)
        if held is None:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        if (files := held.at(revision)) is None:
            return 404, {"error": "Invalid rev id", "code": "RevisionNotFound"}
        told = [blob.told(path) for path, blob in files.items()]
        return 200, {"id": repository, "modelId": repository, "sha": held.branches.get(revision, revision),
                     "private": held.private, "siblings": told}  # fmt: skip

    def tree(self, repository: str, revision: str) -> Answer:
        files = self.hub.repositories[repository].at(revision) or {}
        return 200, [{"type": "file", "path": p, "size": b.size, "oid": b.told(p)["blobId"]} for p, b in files.items()]

    def validate(self) -> Answer:
        content = self.json()["content"]
        if "not-a-licence" in content:
            return 400, {"errors": [{"message": '"license" must be one of [apache-2.0, mit]'}], "warnings": []}
        warned = [] if content.startswith("---\n") else [{"message": "empty or missing yaml metadata in repo card"}]
        return 200, {"errors": [], "warnings": warned}

    def preupload(self, repository: str, revision: str) -> Answer:
        there = self.hub.repositories[repository].at(revision) or {}
        modes = []
        for file in self.json()["files"]:
            blob, lfs = there.get(file["path"]), file["path"].endswith(LFS)
            oid = None if blob is None else blob.sha256 if blob.lfs else git_id(blob.data or b"")
            modes.append(
                {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        return 200, {"files": modes}

    def batch(self, repository: str) -> Answer:
        told = []
        for one in self.json()["objects"]:
            have = {} if one["oid"] not in self.hub.objects else None
            upload = {"upload": {"href": f"{self.hub.url}/storage/{one['oid']}"}}
            told.append({"oid": one["oid"], "size": one["size"], **({} if have is None else {"actions": upload})})
        return 200, {"transfer": "basic", "objects": told}

    def put(self, oid: str) -> Answer:
        self.hub.objects[oid] = self.body
        return 200, {}

    def xet(self, repository: str, revision: str) -> Answer:
        return 200, {"accessToken": "xet", "exp": 4_000_000_000, "casUrl": f"local://{self.hub.storage}"}

    def commit(self, repository: str, revision: str) -> Answer:
        held = self.hub.repositories[repository]
        files = dict(held.at(revision) or {})
        for line in self.body.splitlines():
            told = json.loads(line)
            key, value = told["key"], told["value"]
            if key == "header":
                if value.get("parentCommit") not in {None, held.branches.get(revision)}:
                    return 412, {"error": "The expected parent commit is not the head of the branch"}
            elif key == "file":
                data = base64.b64decode(value["content"])
                data = bytes([data[0] ^ 1]) + data[1:] if self.hub.damage and data else data
                files[value["path"]] = Blob(len(data), hashlib.sha256(data).hexdigest(), data)
            elif key == "lfsFile":
                data = self.hub.objects.get(value["oid"])
                assert data is None or (hashlib.sha256(data).hexdigest(), len(data)) == (value["oid"], value["size"])
                files[value["path"]] = Blob(value["size"], value["oid"], data, lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
        files |= {path: Blob(1, "", b"x") for path in self.hub.beside}
        oid = held.commit(revision, files)
        return 200, {"commitUrl": f"{self.hub.url}/{repository}/commit/{oid}", "commitOid": oid}


REPOSITORY = r"/api/models/([\w.-]+/[\w.-]+)"
ROUTES = (
    (r"/api/repos/create", "POST", "create"),
    (r"/api/validate-yaml", "POST", "validate"),
    (rf"{REPOSITORY}/branch/([^/]+)", "POST", "branch"),
    (rf"{REPOSITORY}/preupload/([^/]+)", "POST", "preupload"),
    (rf"{REPOSITORY}/commit/([^/]+)", "POST", "commit"),
    (rf"{REPOSITORY}/xet-write-token/([^/]+)", "GET", "xet"),
    (rf"{REPOSITORY}/tree/([^/]+)", "GET", "tree"),
    (rf"{REPOSITORY}/revision/([^/]+)", "GET", "about"),
    (REPOSITORY, "GET", "about"),
    (r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", "POST", "batch"),
    (r"/storage/([0-9a-f]{64})", "PUT", "put"),
)  # fmt: skip


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def received(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_GET(self) -> None:
            body = self.received()
            hub.asked.append(f"{self.command} {urlsplit(self.path).path}")
            status, told = Asked(hub, self.command, self.path, self.headers, body).answer()
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if isinstance(told, dict) and "code" in told:
                self.send_header("X-Error-Code", told["code"])
            if isinstance(told, dict) and isinstance(told.get("error"), str):
                self.send_header("X-Error-Message", told["error"])
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_GET

    return Handler


@contextmanager
def hub_server(storage: Path) -> Iterator[Hub]:
    hub = Hub(storage)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
