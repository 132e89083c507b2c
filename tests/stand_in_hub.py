"""The hub's endpoints on this machine, and a client of them in a process of its own.

huggingface-hub reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported. Large files go by the git-lfs
protocol; Xet, which needs the hub's own storage service, is switched off.
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
        self.server.repositories.setdefault(
            name, Repository(private=page.get("visibility") == "private" or page.get("private") is True)
        )
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


@contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


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
