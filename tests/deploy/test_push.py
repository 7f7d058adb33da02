"""What goes to the Hub, to whom it is shown, and what stops it: by the Hub's own client, against a server here."""

import base64
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from finished import FLOAT32, restate
from huggingface_hub import ModelCard

from sft_recipes.deploy import push
from sft_recipes.errors import InputError
from sft_recipes.files import sealed
from sft_recipes.models import licences
from sft_recipes.recipes.recipe import read_model
from sft_recipes.report import card
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]

Finished = Callable[..., Run]
TOKEN = "hf_0123456789abcdef"  # noqa: S105, of nobody


class Hub:
    """The Hub as far as an upload asks it: what it was asked, and how it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.status = 200
        self.base: dict[str, Any] = {}
        self.private = True
        self.endpoint = ""

    def answer(self, method: str, path: str, body: bytes) -> Any:
        self.asked.append((method, path))
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return {"url": f"{self.endpoint}/org/name", "id": "org/name"}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if path.endswith("/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return {"commitUrl": f"{self.endpoint}/org/name/commit/1", "commitOid": "1", "success": True}
        if method == "GET":
            found = {"id": "org/name", "sha": "0", "private": self.private, "siblings": []}
            return found | ({"cardData": self.base} if path.startswith("/api/models/org/base/") else {})
        return {"errors": [], "warnings": []}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.tokens.add(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = hub.answer(self.command, self.path.partition("?")[0], body)
            content = json.dumps(found if hub.status == 200 else {"error": "no"}).encode()
            self.send_response(hub.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    server.shutdown()


@pytest.fixture
def of_the_hub(finished: Finished) -> Run:
    """A finished run whose base is a model of the Hub, with its card."""
    return based_on("org/base", finished(**FLOAT32))


def based_on(base: str, run: Run) -> Run:
    """The run as if its base were that model of the Hub."""
    run.recipe.write_text(run.recipe.read_text().replace("model_name_or_path: model", f"model_name_or_path: {base}"))
    config = run.adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
    facts = run.facts()
    facts["identity"]["files"]["recipe.yaml"] = hashlib.sha256(run.recipe.read_bytes()).hexdigest()
    saved = sealed(run.adapter, besides="README.md")
    restate(run, identity=facts["identity"], measured={**facts["measured"], "saved": saved})
    card.write(run)
    return run


def test_an_adapter_goes_with_its_card_and_nothing_else(
    of_the_hub: Run, hub: Hub, capsys: pytest.CaptureFixture
) -> None:
    (of_the_hub.adapter / "training_args.bin").write_bytes(b"left over")
    (of_the_hub.adapter / "notes.txt").write_text("of the user")
    facts = push.push("tuned", "org/name")
    assert hub.created["name"] == "name" and hub.created["organization"] == "org"
    assert hub.created["visibility"] == "private"
    expected = {*of_the_hub.facts()["measured"]["saved"], "README.md"}
    assert hub.files.keys() == expected == facts["files"].keys()
    assert "training_args.bin" not in expected and "notes.txt" not in expected
    for name, content in hub.files.items():
        assert content == (of_the_hub.adapter / name).read_bytes()
    assert hub.tokens == {f"Bearer {TOKEN}"}
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    assert "org/name, private\n" in said.out and "adapter_model.safetensors, " in said.out
    assert said.out.index("uploading") < said.out.index("uploaded")


def test_a_merged_model_goes_publicly_when_both_are_asked_for(of_the_hub: Run, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no merged model; make one with: make merge RUN=tuned"):
        push.push("tuned", "org/name", merged=True)
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "model.safetensors").write_bytes(b"weights")
    of_the_hub.update(merged={"directory": str(merged), "files": sealed(merged, besides="README.md")})
    with pytest.raises(InputError, match=r"merged has no README\.md"):
        push.push("tuned", "org/name", merged=True)
    (merged / "README.md").write_text("card")
    (merged / "merge.json").write_text("{}")
    hub.private = False
    push.push("tuned", "org/name", merged=True, public=True)
    assert hub.files == {"model.safetensors": b"weights", "README.md": b"card"}
    (merged / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(InputError, match=r"is not what was merged: model\.safetensors does not match its checksum"):
        push.push("tuned", "org/name", merged=True)


def test_nothing_goes_into_a_repository_that_is_public_already(of_the_hub: Run, hub: Hub) -> None:
    hub.private = False
    with pytest.raises(InputError, match="org/name is public already, and nothing was uploaded; say PUBLIC=1"):
        push.push("tuned", "org/name")
    assert not hub.files


def test_what_is_nothing_to_publish_is_refused_with_every_reason(
    finished: Finished, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(**FLOAT32)
    run.update(rehearsal=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError) as refused:
        push.push("tuned", "name")
    assert [problem.split(";")[0] for problem in refused.value.problems] == [
        "REPO='name' is no repository",
        "there is no token of the Hub",
        "runs/tuned is a rehearsal, whose adapter belongs to a tiny random model",
        "runs/tuned/adapter is an adapter for model, a local directory that nobody else has",
    ]
    os.truncate(run.adapter / "adapter_model.safetensors", 100)
    with pytest.raises(InputError, match=r"is not what was trained: adapter_model\.safetensors has 100 bytes"):
        push.push("tuned", "org/name")
    restate(run, status="interrupted")
    with pytest.raises(
        InputError, match=r"\nruns/tuned is interrupted, not finished; finish it first: make resume NAME=tuned$"
    ):
        push.push("tuned", "org/name")
    assert not hub.asked


def test_an_adapter_without_a_card_is_refused(of_the_hub: Run, hub: Hub) -> None:
    (of_the_hub.adapter / "README.md").unlink()
    with pytest.raises(InputError, match=r"adapter has no README\.md"):
        push.push("tuned", "org/name")
    assert not hub.asked


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "nothing was uploaded: the Hub does not accept the token of HF_TOKEN"),
        (403, "nothing was uploaded: the token of HF_TOKEN, or of hf auth login, may not write to org/name"),
        (404, "nothing was uploaded: the Hub knows no owner of org/name"),
    ],
)
def test_what_the_hub_refuses_is_one_message(of_the_hub: Run, hub: Hub, status: int, message: str) -> None:
    hub.status = status
    with pytest.raises(InputError, match=message) as refused:
        push.push("tuned", "org/name")
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_nothing_happens_but_a_message(
    of_the_hub: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    # Nobody listens on this port.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"nothing was uploaded: .*Check the network"):
        push.push("tuned", "org/name")


def test_a_stored_login_is_as_good_as_the_environment(
    of_the_hub: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_stored0123456789")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    push.push("tuned", "org/name")
    assert hub.tokens == {"Bearer hf_stored0123456789"} and hub.files


@pytest.mark.parametrize(
    ("base", "header", "said"),
    [
        ({}, {}, "that of the base org/base is not known here"),
        ({"license": "apache-2.0"}, {"license": "apache-2.0"}, "apache-2.0, that of the base org/base"),
        (
            {"license": "other", "license_name": "house", "license_link": "https://example.org/terms"},
            {"license": "other", "license_name": "house", "license_link": "https://example.org/terms"},
            "house, that of the base org/base",
        ),
        ({"license": "other", "license_link": "javascript:x"}, {"license": "other"}, "other, that of the base"),
    ],
)
def test_the_base_s_licence_is_that_of_its_page_and_goes_into_the_card(
    of_the_hub: Run, hub: Hub, capsys: pytest.CaptureFixture, base: Any, header: Any, said: str
) -> None:
    hub.base = base
    push.push("tuned", "org/name")
    found = ModelCard(hub.files["README.md"].decode()).data.to_dict()
    assert {key: value for key, value in found.items() if key.startswith("license")} == header
    assert said in capsys.readouterr().out


def test_a_licence_that_forbids_it_stops_the_upload_before_anything_is_made(of_the_hub: Run, hub: Hub) -> None:
    hub.base = {"license": "cc-by-nd-4.0"}
    with pytest.raises(InputError, match=r"cc-by-nd-4\.0, which lets nobody hand on what is made of it"):
        push.push("tuned", "org/name")
    assert not hub.created and not hub.files


def test_the_name_and_the_notice_that_a_licence_asks_for(finished: Finished, hub: Hub) -> None:
    run = based_on("meta-llama/Llama-3.2-1B-Instruct", finished(**FLOAT32))
    with pytest.raises(InputError, match=r"begins with Llama; write REPO=org/Llama-name$"):
        push.push("tuned", "org/name")
    assert not hub.asked
    facts = push.push("tuned", "org/Llama-name")
    assert {"NOTICE", "README.md"} < facts["files"].keys() == hub.files.keys()
    text = hub.files["README.md"].decode()
    assert ModelCard(text).data.license == "llama3.2" and "\nBuilt with Llama.\n" in text
    assert hub.files["NOTICE"].decode().startswith("Llama 3.2 is licensed under the Llama 3.2 Community License")
    assert run.adapter.joinpath("NOTICE").is_file()


def test_the_licence_of_every_model_that_is_shipped_is_known() -> None:
    shipped = {read_model(path.stem)["model_name_or_path"].value for path in (ROOT / "models").glob("*.yaml")}
    assert {name for name in shipped if licences.of(name) is None} == set()


def test_a_local_base_s_card_says_its_licence(finished: Finished, tmp_path: Path) -> None:
    run = finished(**FLOAT32)
    assert "The licence of the base was not known" in card.card(run)
    base = Path(shutil.copytree("model", "copy"))
    Path("model").unlink()
    base.rename("model")
    Path("model/README.md").write_text("---\nlicense: mit\n---\n")
    text = card.card(run)
    assert ModelCard(text).data.license == "mit" and "The base is under mit, which holds for this too" in text
    Path("model/README.md").write_text("---\nlicense: [\n---\n")
    assert ModelCard(card.card(run)).data.license is None
