"""Push and pull, over real HTTP, with a stand-in of the hub's endpoints on this machine.

The client runs in its own process: huggingface-hub reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported.
Large files go by the git-lfs protocol; Xet, which needs the hub's own storage service, is switched off.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import transept
from tests.stand_in_hub import TOKEN, Hub, Repository, client, running_hub
from tests.weights.helpers import OFFLINE

REFUSED = f"""
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
"""
PUSHED = f"""
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
"""
SPELLINGS = f"""
from transept.weights.fetch import hub
for spelling in {list(OFFLINE)}:
    os.environ["TRANSEPT_OFFLINE"] = spelling
    attempt(spelling, hub.download, "me/nowhere", "config.json")
    attempt(f"push {{spelling}}", hub.create_repository, "me/mine", private=False, token="hf_bad")
os.environ["TRANSEPT_OFFLINE"] = "perhaps"
attempt("perhaps", hub.download, "me/nowhere", "config.json")
os.environ |= {{"TRANSEPT_OFFLINE": "0", "HF_HUB_OFFLINE": "y"}}
attempt("the hub's", hub.download, "me/nowhere", "config.json")
"""


class Visit(NamedTuple):
    """A hub, and what a client found there."""

    hub: Hub
    home: Path
    found: dict[str, str]


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """One client for all that a hub which answers is asked, for its process takes seconds to start."""
    folder = tmp_path_factory.mktemp("hub")
    model = transept.create_model("cait_xxs24_224", img_size=32, depth=1, num_classes=3)
    transept.save_pretrained(model, folder / "f")
    config = (folder / "f" / "config.json").read_bytes()
    cut = (folder / "f" / "model.safetensors").read_bytes()[:-100]
    with running_hub() as hub:
        hub.repositories |= {
            "me/open": Repository(),
            "me/words": Repository(),
            "them/hidden": Repository(private=True),
            "them/gated": Repository(gated=True),
            "them/pickled": Repository(),
            "them/cut": Repository(),
            "them/odd": Repository(),
        }
        hub.repositories["me/words"].add({"README.md": b"---\nlicense: mit\n---\n# My own words\n"})
        hub.repositories["them/pickled"].add({"config.json": config, "pytorch_model.bin": b"\x80\x04N."})
        hub.repositories["them/cut"].add({"config.json": config, "model.safetensors": cut})
        hub.repositories["them/odd"].add({"config.json": b"<html>"})
        yield Visit(hub, folder / "home", client(REFUSED + PUSHED + SPELLINGS, folder / "home", hub.url))


def test_push_and_pull(visit: Visit):
    hub, _, found = visit
    expected = {
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
    assert {name: found[name] for name in expected} == expected
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


def test_what_the_hub_refuses(visit: Visit):
    hub, home, found = visit
    log_in = "log in with `hf auth login` or give token="
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
    commit = next(iter(hub.repositories["them/pickled"].commits))
    assert found["pickled"] == f"TranseptError: 'them/pickled' has no file 'model.safetensors' at revision '{commit}'"
    assert re.search(r"model.safetensors' is no whole safetensors file", found["cut"])
    assert re.search(r"config.json' is no valid JSON", found["odd"])
    assert str(home) in found["odd"]
    for name in ("no right", "no token"):
        assert found[name].startswith("TranseptError: our token does not allow this for "), found[name]
    assert not [line for line in found.values() if "\n" in line]
    assert not any("pytorch_model.bin" in line for line in hub.log)


def test_spellings_of_offline(visit: Visit):
    found = visit.found
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
