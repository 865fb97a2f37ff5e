"""pytest tests/weights/test_hub.py: models from a model hub, and there; the hub is a server in this process."""

import hashlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image

import vismoe
from vismoe.cli import main
from vismoe.weights import open_trained, push_to_hub

transformers = pytest.importorskip("transformers")

COMMIT = "a" * 40
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for: a repository's files, the head of one, and one."""

    folders: ClassVar[dict] = {}

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def answer(self, body=True):
        api = re.match(r"/api/models/([^/]+/[^/?]+)", self.path)
        file = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path)
        folder = self.folders.get((api or file)[1]) if api or file else None
        code, data = 404, b""
        headers = {"X-Error-Code": "RepoNotFound" if folder is None else "EntryNotFound"}
        if folder is not None and api:
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in folder.iterdir()]
            info = {"id": api[1], "sha": COMMIT, "siblings": [{"rfilename": file["path"]} for file in files]}
            code, data = 200, json.dumps(files if "/tree/" in self.path else info).encode()
            headers = {"Content-Type": "application/json"}
        elif folder is not None and (folder / file[2]).is_file():
            code, data = 200, (folder / file[2]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def at(monkeypatch, address, cache):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    monkeypatch.setattr(Hub, "folders", {})
    yield Hub.folders
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    at(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "cache")


def transformers_vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=3)
    return transformers.ViTForImageClassification(config).eval()


def timm_vit():
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **small).eval()


def test_hf_opens_transformers_timms_and_ours(hub, tmp_path):
    """The logits are those of the network that was written; only what is needed is fetched, no pickle."""
    theirs = transformers_vit()
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "pytorch_model.bin").write_bytes(b"not to be fetched")
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}'
    )
    of_timm, ours = timm_vit(), vismoe.upcycle(transformers_vit()).eval()
    timm.models.save_for_hf(of_timm, tmp_path / "timms", safe_serialization=True)
    vismoe.save(ours, tmp_path / "ours")
    hub |= {f"some/{name}": tmp_path / name for name in ("theirs", "timms", "ours")}
    with torch.inference_mode():
        for name, expected in (
            ("theirs", theirs(PIXELS).logits),
            ("timms", of_timm(PIXELS)),
            ("ours", ours(PIXELS).logits),
        ):
            found = open_trained(f"hf:some/{name}")
            torch.testing.assert_close(found(PIXELS), expected)
            if name == "theirs":
                assert found.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert not list((tmp_path / "cache").rglob("*.bin"))


@pytest.mark.parametrize("source", ["hf:some/timms", "hf:some/ours", "local-dir:", "folder"])
def test_differences_from_any_parent(hub, tmp_path, capsys, monkeypatch, source):
    """`vismoe upcycle --only-differences` of a hub's network and of a folder: a small folder that opens again."""
    timm.models.save_for_hf(timm_vit(), tmp_path / "timms", safe_serialization=True)
    vismoe.save(timm_vit(), tmp_path / "ours")
    hub |= {f"some/{name}": tmp_path / name for name in ("timms", "ours")}
    source = {"local-dir:": f"local-dir:{tmp_path / 'ours'}", "folder": str(tmp_path / "ours")}.get(source, source)
    out = tmp_path / "small"
    options = ["--experts", "low-rank", "--rank", "2", "--num-experts", "2", "--layers", "last-1"]
    assert main(["upcycle", source, str(out), "--only-differences", *options]) == 0, capsys.readouterr().err
    named = json.loads((out / "config.json").read_text())["parent"]["source"]
    assert named == (source if source.startswith("hf:") else str(tmp_path / "ours"))
    assert main(["upcycle", source, str(tmp_path / "whole"), *options]) == 0
    small, whole = ((path / "model.safetensors").stat().st_size for path in (out, tmp_path / "whole"))
    assert small < whole / 2
    at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert torch.equal(vismoe.load(out)(PIXELS), vismoe.load(tmp_path / "whole")(PIXELS))


def test_a_parent_that_no_differences_can_be_of(hub, tmp_path, capsys):
    """Of transformers' networks whole models are written: said before there is anything to lose."""
    transformers_vit().save_pretrained(tmp_path / "theirs")
    hub["some/theirs"] = tmp_path / "theirs"
    assert main(["upcycle", "hf:some/theirs", str(tmp_path / "small"), "--only-differences"]) == 2
    said = capsys.readouterr()
    assert "which can only be written whole" in said.err
    assert not said.out
    assert not (tmp_path / "small").exists()


def test_a_repository_that_names_itself_as_its_parent(hub, tmp_path):
    """A circle across the hub ends at once, with what is wrong."""
    folder = vismoe.save(timm_vit(), tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"parent": {"source": "hf:some/own", "sha256": "0"}}))
    hub["some/own"] = folder
    with pytest.raises(ValueError, match="parent names hf:some/own, which has only the differences"):
        open_trained("hf:some/own")


def test_what_is_in_the_cache_needs_no_network(hub, tmp_path, monkeypatch):
    """Once downloaded it opens again without the hub."""
    transformers_vit().save_pretrained(tmp_path / "theirs")
    hub["some/theirs"] = tmp_path / "theirs"
    before = open_trained("hf:some/theirs")(PIXELS)
    at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    torch.testing.assert_close(open_trained("hf:some/theirs")(PIXELS), before)


@pytest.mark.parametrize("verb", ["finetune", "fewshot"])
def test_without_a_network_it_says_so_at_once(no_network, verb, tmp_path, capsys, monkeypatch):
    """One line for hf: and timm: alike, and no more than three seconds of waiting between tries."""
    waited, few = [], tmp_path / "few"
    for number in range(8):
        (few / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 80).save(few / f"{number % 2}" / f"{number}.png")
    monkeypatch.setattr(time, "sleep", waited.append)
    for source in ("hf:some/model", "timm:vit_tiny_patch16_224"):
        arguments = {"finetune": ["--from", source, "--out", str(tmp_path / "run")], "fewshot": [source]}[verb]
        assert main([verb, *arguments, "--data", str(few)]) == 2
        assert sum(waited) < 3
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert "cannot be downloaded from the hub" in said[0]
        assert "check the network" in said[0]


def test_a_repository_that_is_not_there(hub):
    """Neither a private one nor one without a name is taken for a missing network."""
    with pytest.raises(ValueError, match="the hub has no such model, or the model is private"):
        open_trained("hf:some/nothing")
    with pytest.raises(ValueError, match="ORG/NAME"):
        open_trained("hf:some/thing/else")


class FakeApi:
    calls: ClassVar[list] = []

    def __init__(self, token):
        self.token = token

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", self.token, options))


def test_push(tmp_path, monkeypatch, capsys):
    """A repository, then the model folder as it is with its card, and nothing beside it; a run's is its model/."""
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setenv("HF_TOKEN", "secret")
    folder = vismoe.save(timm_vit(), tmp_path / "run" / "model")
    assert main(["push", str(tmp_path / "run"), "some/model", "--private"]) == 0
    assert capsys.readouterr().out == "uploaded: https://huggingface.co/some/model\n"
    (created, name, options), (uploaded, token, what) = FakeApi.calls
    assert (created, name, uploaded, token) == ("create_repo", "some/model", "upload_folder", "secret")
    assert options["private"] is True
    assert what["folder_path"] == folder
    assert {"config.json", "model.safetensors", "README.md"} <= set(what["allow_patterns"])
    assert what["repo_id"] == "some/model"


def test_what_cannot_be_pushed(tmp_path, monkeypatch, no_network):
    """No folder, no model, no token, no network: each is told apart."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    folder = vismoe.save(timm_vit(), tmp_path / "some" / "model")
    with pytest.raises(FileNotFoundError, match="expected a run or model folder"):
        push_to_hub(tmp_path / "nothing", "some/model")
    with pytest.raises(ValueError, match="not a model folder"):
        push_to_hub(tmp_path, "some/model")
    with pytest.raises(ValueError, match="hf auth login"):
        push_to_hub(folder, "some/model")
    with pytest.raises(ValueError, match="expected ORG/NAME"):
        push_to_hub(folder, "no such/name/at all", token="secret")
    with pytest.raises(ValueError, match="could not be uploaded to some/model"):
        push_to_hub(folder, "some/model", token="secret")
