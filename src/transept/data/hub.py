"""Tables of the `datasets` library: sets of the Hugging Face hub, and folders that it wrote or reads."""

from pathlib import Path
from typing import Any

from transept.data.images import BadImageError
from transept.data.places import is_inside
from transept.errors import TranseptError, UsageError
from transept.extras import install

HUB = "hf:"
_WRITTEN = ("dataset_dict.json", "state.json")
"""Files of a folder that the library wrote."""


def is_table(data: str) -> bool:
    """Whether it names a set of the hub, or a folder that the library wrote."""
    return data.startswith(HUB) or any((Path(data).expanduser() / name).is_file() for name in _WRITTEN)


def stored_file(cell: Any, name: Path, data: str) -> bytes | Path:
    """The file in a cell: its bytes, or a path in the data folder or the library's own cache.

    Args:
        cell: of an undecoded column of pictures.
        name: to name in errors.
        data: folder, or name on the hub.

    Raises:
        BadImageError: there is none, or its path leads elsewhere.
    """
    from datasets import config  # an extra

    if cell is None or not (cell["bytes"] or cell["path"]):
        raise BadImageError(name, "is empty")
    if cell["bytes"]:
        return cell["bytes"]
    path = Path(cell["path"])
    caches = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.HF_MODULES_CACHE)
    if not any(is_inside(path, Path(place).expanduser()) for place in (data, *caches)):
        raise BadImageError(name, f"is {str(path)!r}, outside of the data folder; save the set with its pictures in it")
    return path


def load_hub(data: str) -> Any:
    """The splits behind `hf:NAME`, `hf:NAME:CONFIGURATION` or a folder of the `datasets` library.

    Raises:
        TranseptError: there is nothing of this kind, it cannot be downloaded, or it has no splits.
        UsageError: `datasets` is not installed.
    """
    try:
        import datasets  # an extra
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError as error:
        raise UsageError(f"Hugging Face sets need the package 'datasets': {install('data')}") from error
    name = data.removeprefix(HUB)
    folder = Path(name).expanduser()
    try:
        if any((folder / file).is_file() for file in _WRITTEN):
            loaded: Any = datasets.load_from_disk(str(folder))
        elif folder.exists():
            loaded = datasets.load_dataset(str(folder))
        else:
            path, _, configuration = name.partition(":")
            loaded = datasets.load_dataset(path, configuration or None)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise TranseptError(f"cannot load the set {name!r} with the datasets library ({reason})") from error
    if not isinstance(loaded, dict):
        raise TranseptError(f"{name!r} has no splits; save a DatasetDict with 'train' and 'validation'")
    return loaded
