"""Packages that an extra brings, and the command that installs them here."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

EXTRA_OF = {
    "lightning": "train",
    "torchmetrics": "train",
    "tensorboard": "train",
    "faster_coco_eval": "detect",
    "pycocotools": "detect",
    "datasets": "data",
    "webdataset": "data",
    "pyarrow": "data",
    "lightly": "ssl",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "openvino": "openvino",
    "nncf": "openvino",
    "gradio": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "transformers": "transformers",
    "rasterio": "geo",
    "pydicom": "medical",
    "av": "video",
    "ray": "cluster",
    "h5py": "keras",
}
"""What is imported of an extra's packages, and of those that they bring along."""


def install(extra: str = "", *, upgrade: bool = False) -> str:
    """The command that adds an extra to this installation: `pip install 'transept[train]'`.

    Where transept was installed from a folder it names the folder, for an index may not have it.
    """
    brackets = f"[{extra}]" if extra else ""
    words = ["-U"] if upgrade else []
    folder, editable = _folder()
    if folder is None:
        return pip_install(*words, _quoted(f"transept{brackets}"))
    here = "." if folder == Path.cwd() else str(folder)
    return pip_install(*words, *(["-e"] if editable else []), _quoted(f"{here}{brackets}"))


def pip_install(*words: str) -> str:
    """`pip install WORDS`, by uv where this environment has no pip, as those that uv makes."""
    return " ".join(["pip" if find_spec("pip") else "uv pip", "install", *words])


def _folder() -> tuple[Path | None, bool]:
    """Where transept was installed from, if that was a folder and is one still, and whether it is in use there."""
    try:
        text = distribution("transept").read_text("direct_url.json")
    except PackageNotFoundError:  # run from its sources
        return None, False
    origin = json.loads(text) if text else {}
    if "dir_info" not in origin:
        return None, False
    folder = Path(url2pathname(urlsplit(origin["url"]).path))
    return (folder, origin["dir_info"].get("editable", False)) if folder.is_dir() else (None, False)


def _quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set("[ ") else word
