"""Packages: what Inductor makes of a model, compiled ahead of time into one file (`inference/package.py` runs it)."""

import copy
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transept.errors import TranseptError
from transept.inference.compile import compiler_problem, in_precision
from transept.inference.fuse import fuse

_OPTIONS: dict[str, Any] = {
    "freezing": True,
    # Of a batch whose least size the trace has not seen, the check refuses one image.
    "aot_inductor.check_lowerbound": False,
}


def write_package(
    module: nn.Module, inputs: Sequence[Tensor], dynamic: dict[int, Any] | None, path: Path, dtype: str
) -> None:
    """Compile `module` for this processor, with layers in `dtype`; it takes and gives float32.

    Raises:
        TranseptError: there is no compiler, or it cannot take this model.
    """
    from torch._inductor import aoti_compile_and_package  # seconds, which every other export would wait for

    if problem := compiler_problem(torch.device("cpu")):
        raise TranseptError(f"{path.name} is compiled, and {problem}, on this machine; install one")
    form = in_precision(fuse(copy.deepcopy(module)), dtype)
    with torch.no_grad():
        program = torch.export.export(form, tuple(inputs), dynamic_shapes=tuple(dynamic for _ in inputs))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, path.with_suffix(".pt2").name)
        try:
            aoti_compile_and_package(program, package_path=str(made), inductor_configs=_OPTIONS)
        except Exception as error:  # a compiler's failures have no common class
            raise TranseptError(f"{path.name} cannot be compiled here: {str(error).strip().splitlines()[0]}") from error
        shutil.copyfile(made, path)
