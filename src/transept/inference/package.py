"""Packages: a compiled form in one file, which any Python process with torch runs, without a compiler.

Inside are machine code for one kind of processor, with the weights as its products want them, and `transept.json`.
The code itself checks nothing: an image of another layout, type or size gives wrong numbers without a word, and another
processor a crash. So what a package needs is read and compared before it is loaded.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transept.errors import TranseptError, UsageError
from transept.inference.processor import architecture, instructions, missing

ENDING = ".pt2"
"""torch opens files of this name only."""
_EXTRA = "extra/transept.json"
_MODEL = "model"


class Package:
    """A compiled model: normalised float32 images `b c H W` to its outputs, in float32."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.about = about
        """What its writer knew: task, classes, preprocessing, `dtype`, `errors`, `img_size`, `size_step`, ..."""
        self._loader = _open(path)

    def __call__(self, images: Tensor) -> Tensor | list[Tensor]:
        """The outputs, as the model gives them; several come as a list.

        Raises:
            UsageError: images of a size, number of channels or type that the package is not for.
        """
        self.check(images)
        outputs = self._loader.boxed_run([images.contiguous()])
        return outputs[0] if len(outputs) == 1 else outputs

    def check(self, images: Tensor) -> None:
        """Raises `UsageError` where the machine code would read something else than an image of its kind."""
        about = self.about
        if images.dtype != torch.float32 or images.ndim != 4 or images.device.type != "cpu":
            kind = str(images.dtype).removeprefix("torch.")
            raise UsageError(
                f"{self.path.name} takes float32 images b x c x H x W on the CPU, and these are"
                f" {tuple(images.shape)} of {kind} on {images.device.type}"
            )
        height, width = images.shape[2:]
        step = about["size_step"]
        fits = not (height % step or width % step) if step else [height, width] == list(about["img_size"])
        if images.shape[1] != about["in_chans"] or not fits:
            sizes = (
                f"sides that are multiples of {step}" if step else f"{about['img_size'][0]} x {about['img_size'][1]}"
            )
            raise UsageError(
                f"{self.path.name} takes {about['in_chans']} channels of {sizes}, and these images have"
                f" {images.shape[1]} of {height} x {width}; export one for this size with --img-size"
            )


def load_package(path: str | PathLike[str]) -> Package:
    """A compiled model that `transept export --format package` wrote, ready in a fraction of a second.

    Raises:
        TranseptError: the file is missing or no such package, or it was made for another processor or torch.
    """
    path = Path(path)
    about = read_about(path)
    lacking = missing(about["instructions"])
    if about["machine"] != architecture() or lacking:
        wanted = " ".join([about["machine"], *about["instructions"]])
        what = f"lacks {', '.join(lacking)}" if lacking else f"is {architecture()}"
        raise TranseptError(
            f"{str(path)!r} was compiled for a processor with {wanted}, and this one {what}; export it again here, or"
            " take --form fused"
        )
    if _minor(about["torch"]) != _minor(torch.__version__):
        raise TranseptError(
            f"{str(path)!r} was compiled with torch {about['torch']}, and this is {torch.__version__}; export it again"
        )
    try:
        return Package(path, about)
    except RuntimeError as error:
        raise TranseptError(f"{str(path)!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def read_about(path: Path) -> dict[str, Any]:
    """What a package says of itself, without loading its code.

    Raises:
        TranseptError: see `load_package`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(each for each in archive.namelist() if each.endswith("/" + _EXTRA))
            about = json.loads(archive.read(name))
        wanted = {"machine": str, "instructions": list, "torch": str, "img_size": list, "in_chans": int, "dtype": str}
        if any(not isinstance(about.get(key), kind) for key, kind in wanted.items()) or path.suffix != ENDING:
            raise ValueError(name)
    except OSError as error:
        raise TranseptError(f"cannot read the package {str(path)!r}: {error.strerror}") from error
    except (zipfile.BadZipFile, StopIteration, ValueError, AttributeError, EOFError) as error:
        raise TranseptError(
            f"{str(path)!r} is no package of transept's; write one with transept export NAME_OR_RUN --format package,"
            f" and keep its ending {ENDING}"
        ) from error
    return {"size_step": None, **about}


def machine_facts() -> dict[str, Any]:
    """What a package made here needs of the machine that runs it."""
    return {"machine": architecture(), "instructions": sorted(instructions()), "torch": str(torch.__version__)}


def weights_digest(model: nn.Module) -> str:
    """The same for the same weights, whatever form they are kept in."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def add_about(path: Path, about: dict[str, Any]) -> None:
    """Put what a package says of itself into its file, which torch wrote."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/{_EXTRA}", json.dumps(about, ensure_ascii=False))


def run_raw(path: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a package that does not say anything of itself yet, for inputs known to fit."""
    return _open(path).boxed_run([value.contiguous() for value in inputs])


def _open(path: Path) -> Any:
    # The public loader spends seconds on importing Inductor, to look for a compiler that is not needed.
    library: Any = torch._C
    return library._aoti.AOTIModelPackageLoader(str(path), _MODEL, False, 1, -1)


def _minor(release: str) -> list[str]:
    return release.split(".")[:2]
