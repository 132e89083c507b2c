"""Files from and to the Hugging Face hub, through huggingface-hub; each of its errors becomes one sentence."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base class of the HTTP client's errors, which client it is depends on the version
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from transept.errors import TranseptError, UsageError
from transept.weights.fetch.offline import offline_variable


def download(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Path, str]:
    """A file of a model repository in the hub's cache, fetched on first use, and the commit that it belongs to.

    Raises:
        TranseptError: the repository, revision or file does not exist or is not open to us, the network fails, or
            we are offline (`TRANSEPT_OFFLINE=1`, `HF_HUB_OFFLINE=1`) and the file is not in the cache.
    """
    with _explained(repo_id, revision, filename):
        path = hf_hub_download(
            repo_id,
            filename,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else str(cache_dir),
            local_files_only=bool(offline_variable()),
            library_name="transept",
            library_version=version("transept"),
        )
    # models--USER--NAME/snapshots/COMMIT/FILE: what later files must be fetched from, should the branch move.
    return Path(path), Path(path).parent.name


def create_repository(repo_id: str, *, private: bool, token: str | None) -> tuple[str, str]:
    """The full name (with its owner) and the address of a model repository, made if it does not exist.

    Raises:
        TranseptError: it cannot be made, or it should be private and exists for everybody to see.
    """
    if variable := offline_variable():
        raise TranseptError(f"cannot push to {repo_id!r}: we are offline ({variable} is set)")
    with _explained(repo_id, None, None):
        api = _api(token)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        # An existing repository keeps its visibility, whatever was asked for.
        public = private and not api.repo_info(url.repo_id).private
    if public:
        raise TranseptError(f"{url.repo_id!r} is public; make it private first, or push with private=False")
    return url.repo_id, str(url)


def has_foreign_file(repo_id: str, filename: str, *, marker: str, token: str | None) -> bool:
    """Whether a repository has a text file of this name that lacks `marker`, which is to say: not one of ours."""
    try:
        with _explained(repo_id, None, filename):
            path = hf_hub_download(repo_id, filename, token=token)
    except TranseptError as error:
        if isinstance(error.__cause__, EntryNotFoundError) and not isinstance(error.__cause__, LocalEntryNotFoundError):
            return False
        raise
    return marker not in Path(path).read_text(encoding="utf-8", errors="replace")


def commit(
    repo_id: str, files: Mapping[str, Path], *, message: str, revision: str | None = None, token: str | None = None
) -> None:
    """Add or replace these files in one commit: readers see all of them or none.

    Raises:
        TranseptError: the token may not write there, the branch does not exist, or the network fails.
    """
    with _explained(repo_id, revision, None):
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        _api(token).create_commit(repo_id, operations, commit_message=message, revision=revision)


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="transept", library_version=version("transept"))


@contextmanager
def _explained(repo_id: str, revision: str | None, filename: str | None) -> Iterator[None]:
    """Turn what huggingface-hub raises inside into a `TranseptError` of one sentence."""
    try:
        yield
    except TranseptError:
        raise
    except HFValidationError as error:
        raise UsageError(
            f"{repo_id!r} is neither a folder nor a repository's name; a name is OWNER/NAME, of letters, digits, "
            "'-', '_' and '.'"
        ) from error
    except (HTTPError, OSError, EntryNotFoundError, RuntimeError, ValueError) as error:
        # RuntimeError and ValueError: an upload's own wrapping, and answers that are not the hub's
        raise TranseptError(_sentence(error, repo_id, revision, filename)) from error


def _sentence(error: Exception, repo_id: str, revision: str | None, filename: str | None) -> str:
    what = f"{filename!r} of {repo_id!r}" if filename else repr(repo_id)
    host = constants.ENDPOINT
    log_in = "log in with `hf auth login` or give token="
    match error:
        case GatedRepoError():
            return f"{repo_id!r} is gated: ask for access at {host}/{repo_id}, then {log_in}"
        case RepositoryNotFoundError():
            return f"{host} shows us no model {repo_id!r}; check the name, or if it is private {log_in}"
        case RevisionNotFoundError():
            return f"{repo_id!r} has no branch, tag or commit {revision or 'main'!r}"
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() if variable := offline_variable():
            return f"{what} is not in the local cache, and we are offline ({variable} is set)"
        case LocalEntryNotFoundError():
            cause = error.__cause__
            if isinstance(cause, HfHubHTTPError):
                return _sentence(cause, repo_id, revision, filename)
            return f"could not reach {host} for {what} ({_first_line(cause or error)}); it is not in the local cache"
        case EntryNotFoundError():
            return f"{repo_id!r} has no file {filename!r} at revision {revision or 'main'!r}"
        case HfHubHTTPError():
            status = error.response.status_code
            if status == 401:
                return f"{host} does not accept our token for {repo_id!r}; {log_in}"
            if status == 403:
                return f"our token does not allow this for {repo_id!r} on {host}; {log_in} one with the permission"
            said = f" ({error.server_message.splitlines()[0][:200]})" if error.server_message else ""
            return f"{host} answered {status} for {what}{said}; try again later"
        case HTTPError() | ConnectionError():
            return f"could not reach {host} for {what} ({_first_line(error)}); try again later"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EACCES | errno.EROFS | errno.EFBIG):
            return f"cannot write {what} to the local cache: {error.strerror}; free some room or set HF_HOME"
        case RuntimeError() if isinstance(error.__cause__, HfHubHTTPError):
            return _sentence(error.__cause__, repo_id, revision, filename)
        case _:
            return f"the exchange with {host} about {what} failed ({_first_line(error)}); try again later"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
