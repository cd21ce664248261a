"""Members on the hub, against a small server of our own that speaks what huggingface_hub asks for."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests import fused_members
from tests.cli import fuse, fuse_forked, fuse_here
from tests.members import perturbed, save_member

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by id; the bytes of weight files that were sent."""

    folders: dict[str, Path]
    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)

    def env(self, home: Path) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(r"/api/models/(\w+/\w+)(?:/(revision|tree)/([^/]+))?", path):
                self.about(match[1], match[2], match[3] or "main")
            elif match := re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", path):
                self.file(match[1], match[3])
            else:
                self.answer(404, b"{}")

        do_HEAD = do_GET

        def about(self, repository: str, what: str | None, revision: str) -> None:
            if repository not in hub.folders:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if revision not in {"main", "v1", COMMIT}:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = sorted(hub.folders[repository].iterdir())
            if what == "tree":
                rows = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f)} for f in files]
                return self.answer(200, json.dumps(rows).encode())
            siblings = [{"rfilename": f.name, "size": f.stat().st_size} for f in files]
            info = {"id": repository, "sha": COMMIT, "siblings": siblings}
            return self.answer(200, json.dumps(info).encode())

        def file(self, repository: str, name: str) -> None:
            path = hub.folders[repository] / name
            data, code, headers = path.read_bytes(), 200, {"ETag": f'"{etag(path)}"', "Accept-Ranges": "bytes"}
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                begin, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
                data, code = data[begin : end + 1], 206
            if self.command == "GET" and name.endswith(".safetensors"):
                hub.sent[f"{repository}/{name}"] = hub.sent.get(f"{repository}/{name}", 0) + len(data)
            self.answer(code, data, headers)

    return Handler


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=128, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    )
    save_member(model, tmp_path / "one")
    save_member(perturbed(model, 1), tmp_path / "two", max_shard_size="1MB")
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 1
    (tmp_path / "two" / "pytorch_model.bin").write_bytes(b"never read")
    (tmp_path / "two" / "modeling_evil.py").write_text("raise SystemExit")
    hub = Hub({"org/one": tmp_path / "one", "org/two": tmp_path / "two"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()


RECIPE = "members: {{one: {one}, two: {two}}}\nlanguage: {{method: linear, weights: 0.5}}\n"
ON_HUB = RECIPE.format(one="org/one", two="{path: org/two, revision: v1}")


def test_an_adapter_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    """Its header is read by ranges to plan, and its weights are fetched to merge, at a commit of its own."""
    folder = tmp_path / "lora"
    folder.mkdir()
    name = "model.layers.1.self_attn.q_proj"
    factors = {"A": torch.randn(4, 128), "B": torch.randn(128, 4)}
    file = folder / "adapter_model.safetensors"
    save_file({f"base_model.model.{name}.lora_{side}.weight": factor for side, factor in factors.items()}, file)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    hub.folders["org/lora"] = folder
    told = "members: {a: {base: org/one, adapter: {path: org/lora, revision: v1}}}\n"
    (tmp_path / "recipe.yaml").write_text(told + "language: {method: linear, weights: {a: 1}}\n")
    env = hub.env(tmp_path / "home")
    ran = fuse_forked("plan", tmp_path / "recipe.yaml", env=env)
    assert ran.code == 0, ran.err
    assert "  a.adapter: org/lora  [2 tensors, 4.1 kB]" in ran.out
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    ran = fuse_forked("merge", tmp_path / "recipe.yaml", tmp_path / "out", env=env)
    assert ran.code == 0, ran.err
    merged, one = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "one" / "model.safetensors")
    wanted = one[f"{name}.weight"].double() + 2 * (factors["B"].double() @ factors["A"].double())
    torch.testing.assert_close(merged[f"{name}.weight"].double(), wanted, rtol=0, atol=1e-6)
    adapter = json.loads((tmp_path / "out" / "fuse.json").read_text())["members"]["a"]["adapter"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: other\n" in card and "base_model:\n- org/one\n- org/lora\n" in card
    assert f"| a | org/one + org/lora | {COMMIT} | not stated + mit |" in card
    sha256 = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert adapter == {"origin": "org/lora", "revision": COMMIT, "peft_type": "LORA", "sha256": sha256}


def test_plan_reads_headers_and_merge_fetches_the_weights(hub: Hub, tmp_path: Path) -> None:
    """The plans are new Pythons, which read the hub's settings as they start."""
    (tmp_path / "recipe.yaml").write_text(ON_HUB)
    env = hub.env(tmp_path / "home")
    ran = fuse("plan", tmp_path / "recipe.yaml", env=env)
    assert ran.code == 0, ran.err
    assert f"one: org/one @ {COMMIT[:12]}" in ran.out and f"two: org/two @ {COMMIT[:12]}" in ran.out
    stored = sum(p.stat().st_size for f in hub.folders.values() for p in f.glob("*.safetensors"))
    assert not list((tmp_path / "home").rglob("*.safetensors")) and stored > sum(hub.sent.values()) / 2
    ran = fuse_forked("merge", tmp_path / "recipe.yaml", tmp_path / "out", env=env)
    assert ran.code == 0, ran.err
    merged, one = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "one" / "model.safetensors")
    two = {k: v for p in (tmp_path / "two").glob("*.safetensors") for k, v in load_file(p).items()}
    assert all(torch.allclose(tensor, (one[name] + two[name]) / 2, atol=1e-7) for name, tensor in merged.items())
    provenance = json.loads((tmp_path / "out" / "fuse.json").read_text())["members"]
    assert provenance["two"]["revision"] == COMMIT and provenance["two"]["origin"] == "org/two"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:\n- org/one\n- org/two\n" in card and "base_model_relation: merge" in card
    cached = {p.name for p in (tmp_path / "home").rglob("*") if p.suffix in {".py", ".bin"}}
    assert not cached, "code and pickles are not downloaded"
    # everything is in the cache now, so the same works without a network
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert fuse("plan", tmp_path / "recipe.yaml", env=offline).code == 0


@pytest.mark.parametrize("scheme", ["", "hf://"])
def test_a_licence_file_is_fetched(hub: Hub, tmp_path: Path, scheme: str) -> None:
    """Of a repository whose card states none; a folder's code beside it is not."""
    (tmp_path / "one" / "LICENSE").write_text("Apache License\n   Version 2.0, January 2004\n")
    (tmp_path / "two" / "COPYING").write_text("GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(one=f"{scheme}org/one", two=f"{scheme}org/two"))
    env = {**hub.env(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = fuse_forked("plan", tmp_path / "recipe.yaml", env=env)
    assert ran.code == 0, ran.err
    assert "\n  one: apache-2.0 (" in ran.out and "\n  two: gpl-3.0 (" in ran.out, ran.out
    assert not list(tmp_path.glob("[hc]*/**/*.py")), "code is not fetched"


def test_a_search_fetches_the_weights_and_goes_on_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(ON_HUB)
    (tmp_path / "data.jsonl").write_text('{"question": "w5 w6", "answer": "w7"}\n')
    search = (
        "search", tmp_path / "recipe.yaml", "--data", tmp_path / "data.jsonl", "--out", tmp_path / "out", "--quiet",
        "--method", "grid", "--holdout", 0, "--max-tokens", 2, "--over",
    )  # fmt: skip
    env = hub.env(tmp_path / "home")
    for _ in range(2):  # the second finds the weights here
        ran = fuse_forked(*search, "language.weights.two=0,1", env=env)
        assert ran.code == 0, ran.err
        assert len((tmp_path / "out" / "trials.jsonl").read_text().splitlines()) == 4
        env = {**env, "HF_HUB_OFFLINE": "1"}


def test_eyes_are_fetched_to_be_inspected(hub: Hub, tmp_path: Path) -> None:
    """Of a member, the files with its eyes and its embedding; everything where language models are looked into."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 200 - 40 * i, 10)).save(images / f"{i}.png")
    for seed, name in enumerate(("left", "right"), 1):
        split(fused_members.save("llava", tmp_path / name, seed))
        hub.folders[f"org/{name}"] = tmp_path / name
    env = hub.env(tmp_path / "home")
    inspect = ("inspect", "encoders", "org/left", "org/right", "--images", images, "--json", "--quiet")
    ran = fuse_forked(*inspect, env=env)
    assert ran.code == 0, ran.err
    local = fuse_here("inspect", "encoders", tmp_path / "left", tmp_path / "right", *inspect[4:])
    there, here = json.loads(ran.out), json.loads(local.out)
    assert list(there["members"]) == ["left", "right"] and there["pairs"] == here["pairs"]
    assert {file.name for file in (tmp_path / "home").rglob("*.safetensors")} == {"seen.safetensors"}
    ran = fuse_forked(*inspect, "--llm", env=env)
    assert ran.code == 0 and json.loads(ran.out)["pairs"][0]["llm"]["values"], ran.err
    assert {file.name for file in (tmp_path / "home").rglob("*.safetensors")} == {
        "seen.safetensors",
        "rest.safetensors",
    }
    fused_members.save_llm(tmp_path / "base")
    pairs = ("inspect", "pairs", "org/left", "org/right", "--base", tmp_path / "base", *inspect[4:])
    ran = fuse_forked(*pairs, env={**env, "HF_HOME": str(tmp_path / "another")})
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["pairs"][0]["missing"] == []


def split(folder: Path) -> None:
    """Write a member's weights as two files, one of which holds half of its language model."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    files = {key: f"{'rest' if 'language' in key and '.layers.1.' in key else 'seen'}.safetensors" for key in tensors}
    for name in set(files.values()):
        save_file({key: tensor for key, tensor in tensors.items() if files[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    whole.unlink()


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    env = hub.env(tmp_path / "home")
    cases = {
        "org/none": "recipe.yaml:1:11: members.one: no such folder here and no such repository on the hub",
        "{path: org/one, revision: v9}": "recipe.yaml:1:11: members.one: revision 'v9' does not exist",
    }
    for one, said in cases.items():
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(one=one, two="org/two"))
        ran = fuse_forked("plan", tmp_path / "recipe.yaml", env=env)
        assert (ran.code, ran.err) == (2, f"fuse: {said}\n")
    (tmp_path / "recipe.yaml").write_text(ON_HUB)
    ran = fuse_forked("plan", tmp_path / "recipe.yaml", env={**env, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert ran.code == 4 and ran.err.count("\n") == 1 and "the hub cannot be reached" in ran.err, ran.err


def test_small_files_that_are_large_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    """Files of holes here, which the hub's listing tells of as of any others."""
    (tmp_path / "recipe.yaml").write_text("members: {one: org/one}\nlanguage: {method: passthrough}\n")
    cases = {
        1: "org/one/x0.json: 100,000,001 bytes is more than the 100,000,000 that fuse reads; nothing was fetched",
        11: "org/one: its {count} small files have {total:,} bytes together, more than 1,073,741,824; nothing was fetched",
    }
    for count, said in cases.items():
        for number in range(count):
            (tmp_path / "one" / f"x{number}.json").touch()
            os.truncate(tmp_path / "one" / f"x{number}.json", 100_000_001 if count == 1 else 100_000_000)
        small = [file for file in (tmp_path / "one").iterdir() if file.suffix in {".json", ".md", ".jinja"}]
        total = sum(file.stat().st_size for file in small)
        ran = fuse_forked("plan", tmp_path / "recipe.yaml", env=hub.env(tmp_path / "home"))
        assert (ran.code, ran.err) == (3, f"fuse: {said.format(count=len(small), total=total)}\n")
        assert not list((tmp_path / "home").rglob("*.json"))


def test_only_what_a_plan_reads_is_fetched_of_an_hf_address(hub: Hub, tmp_path: Path) -> None:
    """`hf://` reads ranges: of `one` its first layer, of `two` the second."""
    layers = "language: {method: passthrough, layers: [{one: [0, 1]}, {two: [1, 2]}]}\n"
    (tmp_path / "recipe.yaml").write_text(
        f"members: {{one: hf://org/one, two: {{path: hf://org/two, revision: v1}}}}\n{layers}"
    )
    env = {**hub.env(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = fuse_forked("merge", tmp_path / "recipe.yaml", tmp_path / "out", env=env)
    assert ran.code == 0, ran.err
    merged, one = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "one" / "model.safetensors")
    two = {k: v for p in (tmp_path / "two").glob("*.safetensors") for k, v in load_file(p).items()}
    for name, tensor in merged.items():
        wanted = one[name] if name.startswith(("model.layers.0", "model.embed")) else two[name]
        assert torch.equal(tensor, wanted), name
    assert not list((tmp_path / "home").rglob("*.safetensors")), "nothing went into the hub's own cache"
    (sparse,) = (tmp_path / "cache" / "fuse" / "stores" / "hf" / "org" / f"one@{COMMIT[:16]}").glob("*.safetensors")
    assert sparse.stat().st_blocks * 512 < 0.7 * sparse.stat().st_size
    assert hub.sent["org/one/model.safetensors"] < 0.9 * sparse.stat().st_size
    told = json.loads((tmp_path / "out" / "fuse.json").read_text())["members"]
    assert told["one"] == {
        "origin": "hf://org/one", "revision": COMMIT, "licence": "", "sha256": {"model.safetensors": ""},
        "etag": {"model.safetensors": etag(tmp_path / "one" / "model.safetensors")},
    }  # fmt: skip
    assert "base_model:\n- org/one\n- org/two\n" in (tmp_path / "out" / "README.md").read_text()
    cases = {
        "hf://org/none": "no such folder here and no such repository on the hub",
        "hf://org": "'hf://org' is no repository of the hub (such as hf://org/name)",
    }
    for where, said in cases.items():
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(one=where, two="hf://org/two"))
        ran = fuse_forked("plan", tmp_path / "recipe.yaml", env=env)
        assert (ran.code, ran.err) == (2, f"fuse: recipe.yaml:1:11: members.one: {said}\n")
