"""Push and pull, over real HTTP, with a stand-in of the hub's endpoints on this machine.

The client runs in its own process: huggingface-hub reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported.
Large files go by the git-lfs protocol; Xet, which needs the hub's own storage service, is switched off.
"""

import base64
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import transept
from tests.weights.helpers import OFFLINE

TOKEN = "hf_good"
Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    """By hash, oldest first."""
    messages: list[str] = field(default_factory=list)

    def add(self, files: Files, message: str = "first") -> str:
        merged = {**(list(self.commits.values()) or [{}])[-1], **files}
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = merged
        self.messages.append(message)
        return oid

    def at(self, revision: str) -> str | None:
        """The hash behind a branch or hash."""
        return (list(self.commits) or ["0" * 40])[-1] if revision == "main" else revision * (revision in self.commits)


class Hub(http.server.ThreadingHTTPServer):
    """What the hub keeps: repositories, large files by their SHA-256, and a log of the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}/storage"  # another host: no token may be sent there


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self) -> None:
        self.path = unquote(self.path.partition("?")[0])
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.log.append(f"{self.command} {self.path}")
        self.authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        for method, pattern, respond in ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, self.path)):
                return respond(self, *match.groups())
        return self.answer(404, {"error": f"the stand-in has no {self.command} {self.path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass

    def repository(self, name: str, write: bool = False) -> Repository | None:
        """The repository, if the sender may see it (or write to it); else None, and the answer is given."""
        found = self.server.repositories.get(name)
        if name == "them/down":
            self.answer(503, {"error": "maintenance"})
        elif self.headers.get("Authorization") == "Bearer hf_bad":
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        elif found is None or (found.private and not self.authorised):
            self.answer(404 if self.authorised else 401, X_Error_Code="RepoNotFound")
        elif found.gated:
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message=f"Access to {name} is restricted")
        elif write and not (self.authorised and name.startswith("me/")):
            self.answer(403, X_Error_Message="You do not have write access")
        else:
            return found
        return None

    def create(self) -> None:
        page = json.loads(self.body)
        name = f"{page['organization'] or 'me'}/{page['name']}"
        if not self.authorised or not name.startswith("me/"):
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(private=page.get("visibility") == "private"))
        return self.answer(status, {"url": f"{self.server.url}/{name}"})

    def info(self, name: str) -> None:
        if found := self.repository(name):
            self.answer(200, {"id": name, "sha": found.at("main"), "private": found.private, "siblings": []})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "the card has no metadata"}]
        self.answer(200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if (found := self.repository(name, write=True)) is None:
            return None
        if not found.at(revision):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        return self.answer(200, {"files": files})

    def batch(self, name: str) -> None:
        if self.repository(name, write=True):
            objects = json.loads(self.body)["objects"]
            for item in objects:
                if item["oid"] not in self.server.large:
                    item["actions"] = {
                        "upload": {"href": f"{self.server.storage}/{item['oid']}"},
                        "verify": {"href": f"{self.server.url}/verify"},
                    }
            self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        whole = hashlib.sha256(self.body).hexdigest() == oid
        if whole:
            self.server.large[oid] = self.body
        self.answer(200 if whole and "Authorization" not in self.headers else 400)

    def verify(self) -> None:
        item = json.loads(self.body)
        self.answer(200 if len(self.server.large.get(item["oid"], b"")) == item["size"] else 404)

    def commit(self, name: str, revision: str) -> None:
        if found := self.repository(name, write=True):
            header, *operations = [json.loads(line) for line in self.body.splitlines()]
            files: Files = {}
            for operation in operations:
                value = operation["value"]
                regular = operation["key"] == "file"
                content = base64.b64decode(value["content"]) if regular else self.server.large[value["oid"]]
                files[value["path"]] = content
            oid = found.add(files, header["value"]["summary"])
            self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (found := self.repository(name)) is None:
            return None
        oid = found.at(revision)
        if not oid:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        content = found.commits.get(oid, {}).get(path)
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        digest = hashlib.sha256(content).hexdigest()
        if digest in self.server.large:
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return self.answer(302, Location=f"{self.server.storage}/{digest}", X_Repo_Commit=oid, **linked)
        return self.answer(200, content, ETag=f'"{digest}"', X_Repo_Commit=oid)

    def storage(self, oid: str) -> None:
        leaked = "Authorization" in self.headers
        self.answer(400 if leaked else 200, b"" if leaked else self.server.large[oid])


_NAME = "([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", f"/api/models/{_NAME}", Handler.info),
    ("POST", f"/api/models/{_NAME}/preupload/(.+)", Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/(.+)", Handler.commit),
    ("POST", f"/{_NAME}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/storage/(.+)", Handler.store),
    ("GET", "/storage/(.+)", Handler.storage),
    ("POST", "/verify", Handler.verify),
    ("GET HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


PRELUDE = """
import json, os, torch, transept
torch.set_num_threads(1)
torch.manual_seed(0)
make = lambda **more: transept.create_model("cait_xxs24_224", img_size=32, depth=1, num_classes=3, **more).eval()
def attempt(name, function, *args, **options):
    try:
        result = function(*args, **options)
        found[name] = result if isinstance(result, str) else type(result).__name__
        return result
    except transept.TranseptError as error:
        found[name] = f"{type(error).__name__}: {error}"
found = {}
"""


def client(code: str, home: Path, endpoint: str, **variables: str) -> dict[str, str]:
    """Run a script against the hub, and give what it found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSEPT_"))}
    settings = dict(HF_ENDPOINT=endpoint, HF_HOME=str(home), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
    out = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}\n{code}\nprint(json.dumps(found))"],
        env=kept | settings | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def test_push_and_pull(hub: Hub, tmp_path: Path):
    hub.repositories["me/open"] = Repository()
    hub.repositories["me/words"] = Repository()
    hub.repositories["me/words"].add({"README.md": b"---\nlicense: mit\n---\n# My own words\n"})
    found = client(
        f"""
from transept.data.classification.transforms import Preprocessing
from transept.tasks.classify import Classifier
model = make()
token = {TOKEN!r}
attempt("url", transept.push_to_hub, model, "mine", token=token, private=True, commit_message="Hello",
        weights="cait_xxs24_224.fb_dist_in1k")
again = attempt("pulled", transept.from_pretrained, "me/mine", token=token)
x = torch.randn(2, 3, 32, 32)
found["equal"] = str(torch.equal(again(x), model(x)) and all(
    torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items()))
first = again
with torch.no_grad():
    model.head.bias.add_(1)
attempt("second", transept.push_to_hub, model, "me/mine", token=token)
found["moved"] = str(torch.equal(transept.from_pretrained("me/mine", token=token)(x), model(x)))
task = Classifier(model, ["a", "b", "c"], Preprocessing(img_size=(32, 32), crop_pct=0.5))
attempt("task", transept.push_to_hub, task, "me/words", token=token)
found["classes"] = " ".join(transept.from_pretrained("me/words").classes)
attempt("exposed", transept.push_to_hub, model, "me/open", token=token, private=True)
os.environ["TRANSEPT_OFFLINE"] = "1"
attempt("cached", transept.from_pretrained, "me/mine", token=token)
attempt("not cached", transept.from_pretrained, "me/open")
attempt("push offline", transept.push_to_hub, model, "me/mine", token=token)
""",
        tmp_path / "home",
        hub.url,
    )
    assert found == {
        "url": f"{hub.url}/me/mine",
        "pulled": "CaiT",
        "equal": "True",
        "second": f"{hub.url}/me/mine",
        "moved": "True",
        "task": f"{hub.url}/me/words",
        "classes": "a b c",
        "exposed": "TranseptError: 'me/open' is public; make it private first, or push with private=False",
        "cached": "CaiT",
        "not cached": "TranseptError: 'config.json' of 'me/open' is not in the local cache, and we are offline "
        "(TRANSEPT_OFFLINE is set)",
        "push offline": "TranseptError: cannot push to 'me/mine': we are offline (TRANSEPT_OFFLINE is set)",
    }
    mine = hub.repositories["me/mine"]
    assert mine.private
    assert mine.messages == ["Hello", "Upload the model with transept"]
    first = next(iter(mine.commits.values()))
    assert sorted(first) == ["README.md", "config.json", "model.safetensors"]
    card = first["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "transept.from_pretrained('me/mine')" in card
    assert "timm.create_model('hf-hub:me/mine'" in card
    assert len(hub.large) == 2  # by git-lfs, since the third push repeats the second's weights
    words = list(hub.repositories["me/words"].commits.values())[-1]
    assert words["README.md"].endswith(b"# My own words\n")
    assert json.loads(words["config.json"])["label_names"] == ["a", "b", "c"]
    assert not hub.repositories["me/open"].commits
    # Offline nothing was asked, and each file comes from the commit of its config.
    assert any(re.fullmatch(r"GET /me/mine/resolve/main/config.json", line) for line in hub.log)
    assert any(re.fullmatch(r"HEAD /me/mine/resolve/[0-9a-f]{40}/model.safetensors", line) for line in hub.log)


def test_what_the_hub_refuses(hub: Hub, tmp_path: Path):
    repositories = hub.repositories
    repositories["them/hidden"] = Repository(private=True)
    repositories["them/gated"] = Repository(gated=True)
    repositories["them/pickled"] = Repository()
    model = transept.create_model("cait_xxs24_224", img_size=32, depth=1, num_classes=3)
    transept.save_pretrained(model, tmp_path / "f")
    config = (tmp_path / "f" / "config.json").read_bytes()
    repositories["them/pickled"].add({"config.json": config, "pytorch_model.bin": b"\x80\x04N."})
    repositories["them/cut"] = Repository()
    cut = (tmp_path / "f" / "model.safetensors").read_bytes()[:-100]
    repositories["them/cut"].add({"config.json": config, "model.safetensors": cut})
    repositories["them/odd"] = Repository()
    repositories["them/odd"].add({"config.json": b"<html>"})
    found = client(
        f"""
pull = transept.from_pretrained
attempt("absent", pull, "them/absent", token={TOKEN!r})
attempt("hidden", pull, "them/hidden")
attempt("gated", pull, "them/gated", token={TOKEN!r})
attempt("bad token", pull, "them/odd", token="hf_bad")
attempt("empty", pull, "them/hidden", token={TOKEN!r})
attempt("pickled", pull, "them/pickled")
attempt("cut", pull, "them/cut")
attempt("odd", pull, "them/odd")
attempt("revision", pull, "them/odd", revision="v1")
attempt("name", pull, "them/o dd")
attempt("not ours", transept.push_to_hub, make(), "them/new", token={TOKEN!r})
attempt("no right", transept.push_to_hub, make(), "them/odd", token={TOKEN!r})
attempt("no token", transept.push_to_hub, make(), "me/new")
attempt("no branch", transept.push_to_hub, make(), "me/branch", token={TOKEN!r}, revision="v1")
""",
        tmp_path / "home",
        hub.url,
    )
    log_in = "log in with `hf auth login` or give token="
    where = str(tmp_path / "home")
    for name, message in {
        "absent": f"{hub.url} shows us no model 'them/absent'; check the name, or if it is private {log_in}",
        "hidden": f"{hub.url} shows us no model 'them/hidden'; check the name, or if it is private {log_in}",
        "gated": f"'them/gated' is gated: ask for access at {hub.url}/them/gated, then {log_in}",
        "bad token": f"{hub.url} does not accept our token for 'them/odd'; {log_in}",
        "empty": "'them/hidden' has no file 'config.json' at revision 'main'",
        "revision": "'them/odd' has no branch, tag or commit 'v1'",
        "not ours": f"our token does not allow this for 'them/new' on {hub.url}; {log_in} one with the permission",
        "no branch": "'me/branch' has no branch, tag or commit 'v1'",
    }.items():
        assert found[name] == f"TranseptError: {message}", name
    assert found["name"].startswith("UsageError: 'them/o dd' is neither a folder nor a repository's name")
    commit = next(iter(repositories["them/pickled"].commits))
    assert found["pickled"] == f"TranseptError: 'them/pickled' has no file 'model.safetensors' at revision '{commit}'"
    assert re.search(r"model.safetensors' is no whole safetensors file", found["cut"])
    assert re.search(r"config.json' is no valid JSON", found["odd"])
    assert where in found["odd"]
    for name in ("no right", "no token"):
        assert found[name].startswith("TranseptError: our token does not allow this for "), found[name]
    assert not [line for line in found.values() if "\n" in line]
    assert not any("pytorch_model.bin" in line for line in hub.log)


def test_spellings_of_offline(hub: Hub, tmp_path: Path):
    found = client(
        f"""
from transept.weights.fetch import hub
for spelling in {list(OFFLINE)}:
    os.environ["TRANSEPT_OFFLINE"] = spelling
    attempt(spelling, hub.download, "me/nowhere", "config.json")
    attempt(f"push {{spelling}}", hub.create_repository, "me/mine", private=False, token="hf_bad")
os.environ["TRANSEPT_OFFLINE"] = "perhaps"
attempt("perhaps", hub.download, "me/nowhere", "config.json")
os.environ |= {{"TRANSEPT_OFFLINE": "0", "HF_HUB_OFFLINE": "y"}}
attempt("the hub's", hub.download, "me/nowhere", "config.json")
""",
        tmp_path,
        hub.url,
    )
    for spelling, offline in OFFLINE.items():
        assert ("we are offline (TRANSEPT_OFFLINE is set)" in found[spelling]) is offline, found[spelling]
        assert ("we are offline" in found[f"push {spelling}"]) is offline
    assert found["perhaps"].startswith("UsageError: TRANSEPT_OFFLINE='perhaps' is neither of 1, true, yes, on")
    assert "we are offline (HF_HUB_OFFLINE is set)" in found["the hub's"]


@pytest.mark.slow  # huggingface-hub tries again and again
def test_a_hub_that_is_down(hub: Hub, tmp_path: Path):
    found = client('attempt("down", transept.from_pretrained, "them/down")', tmp_path, hub.url)
    assert found["down"] == (f"TranseptError: {hub.url} answered 503 for 'config.json' of 'them/down'; try again later")


@pytest.mark.slow  # huggingface-hub tries again and again
def test_no_network(tmp_path: Path):
    with Hub() as closed:
        endpoint = closed.url  # nobody listens there any more
    found = client(
        """
attempt("pull", transept.from_pretrained, "me/mine")
attempt("push", transept.push_to_hub, make(), "me/mine", token="hf_good")
os.environ["HF_HUB_OFFLINE"] = "1"
attempt("pull offline", transept.from_pretrained, "me/mine")
attempt("push offline", transept.push_to_hub, make(), "me/mine", token="hf_good")
""",
        tmp_path,
        endpoint,
    )
    assert found["pull"].startswith(f"TranseptError: could not reach {endpoint} for 'config.json' of 'me/mine' (")
    assert found["push"].startswith(f"TranseptError: could not reach {endpoint} for 'me/mine' (")
    assert found["pull offline"].endswith("not in the local cache, and we are offline (HF_HUB_OFFLINE is set)")
    assert found["push offline"].endswith("cannot push to 'me/mine': we are offline (HF_HUB_OFFLINE is set)")
    assert not [line for line in found.values() if "\n" in line]
