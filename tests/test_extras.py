"""What to install, said so that it works here."""

import json
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import transept.extras
from transept.doctor.findings import packages
from transept.extras import EXTRA_OF, install, pip_install


def test_each_package_of_an_extra_is_known_by_the_name_that_is_imported():
    extras: dict[str, set[str]] = {}
    for extra, wanted in packages().items():
        for package in wanted if extra else ():
            extras.setdefault(package.name, set()).add(extra)
    owned = packages_distributions()
    for package, wanted_by in extras.items():
        imported = [name for name, owners in owned.items() if package in owners]
        found = {EXTRA_OF[name] for name in imported if name in EXTRA_OF}
        assert found & wanted_by, f"{package} of {wanted_by} is imported as {imported}"


class Installed:
    """What `importlib.metadata.distribution` tells of an installation."""

    def __init__(self, origin: dict | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


def test_the_command_is_of_the_way_that_transept_was_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "my clone"
    folder.mkdir()
    url = folder.as_uri()
    for origin, command in (
        (None, "'transept[export]'"),
        ({"url": "file:///tmp/transept-0.2.0.whl", "archive_info": {}}, "'transept[export]'"),
        ({"url": url, "dir_info": {}}, f"'{folder}[export]'"),
        ({"url": url, "dir_info": {"editable": True}}, f"-e '{folder}[export]'"),
        ({"url": f"{url}-gone", "dir_info": {}}, "'transept[export]'"),
    ):
        monkeypatch.setattr(transept.extras, "distribution", lambda _, origin=origin: Installed(origin))
        assert install("export") == pip_install(command)
    monkeypatch.setattr(transept.extras, "distribution", lambda _: Installed({"url": url, "dir_info": {}}))
    monkeypatch.chdir(folder)
    assert install("export") == pip_install("'.[export]'")
    assert install(upgrade=True) == pip_install("-U", ".")


@pytest.mark.parametrize(("there", "command"), [(True, "pip install av"), (False, "uv pip install av")])
def test_an_environment_without_pip(there: bool, command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transept.extras, "find_spec", lambda name: name if there else None)
    assert pip_install("av") == command
