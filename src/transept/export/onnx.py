"""Graphs of any task: traced once, written as ONNX and for torch.export, read back and compared before they get a name.

The files carry what a caller must know (classes, preprocessing, size) as one JSON object: in ONNX the metadata property
`transept`, in torch.export's file the extra file `transept.json`.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from transept.errors import UsageError, unknown
from transept.files import reserve, write_together

Format = Literal["onnx", "pt2"]
FILES: Mapping[Format, str] = {"onnx": "model.onnx", "pt2": "model.pt2"}

METADATA = "transept"
_EXTRA_FILE = f"{METADATA}.json"

Run = Callable[[Sequence[Tensor]], list[Tensor]]
"""Inputs to outputs of a graph, in their order."""


class Exported(NamedTuple):
    """The files written, and how they were found to agree."""

    files: dict[Format, Path]
    errors: dict[Format, dict[str, float]]
    """Largest differences from eager on the picture, by the output's name."""
    about: dict[str, Any]
    """The metadata of the files."""


class Axis(NamedTuple):
    """An output, and the name of its first axis."""

    output: str
    counts: str


Shape = dict[int, Any] | None
"""Axes of an input that may have any length, each a `torch.export.Dim` or a multiple of one."""


def write_graphs(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[Axis],
    folder: Path,
    formats: Sequence[str],
    metadata: Mapping[str, Any],
    compare: Callable[[Format, Run], dict[str, float]],
    *,
    dynamic: Shape = None,
) -> Exported:
    """Trace `module` with example inputs, by name, and write the files of `FILES` to `folder`.

    Every file is read back and handed to `compare`, which returns the differences or raises; then only do the files
    get their names, all of them or none.

    Args:
        dynamic: axes of every input that may have other lengths than the example's, which are then 2 or more.

    Raises:
        UsageError: an unknown format, or the packages that write and run ONNX are not installed.
        TranseptError: the folder cannot be written to, or what `compare` raises.
    """
    chosen = check_formats(formats)
    names = {"inputs": list(inputs), "outputs": [axis.output for axis in outputs]}
    metadata = {"transept": version("transept"), **names, **metadata}
    reserve(folder, len(chosen) * sum(p.numel() * p.element_size() for p in module.parameters()))
    shapes = tuple(dynamic for _ in inputs)
    # The graph must not rely on the memory layout of one machine's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes)
    errors: dict[Format, dict[str, float]] = {}

    def writer(kind: Format) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            if kind == "onnx":
                _write_onnx(program, path, list(inputs), outputs, metadata)
            else:
                torch.export.save(program, path, extra_files={_EXTRA_FILE: json.dumps(metadata)})
            errors[kind] = compare(kind, _RUNNERS[kind](path))

        return write

    write_together(folder, {FILES[kind]: writer(kind) for kind in chosen})
    return Exported({kind: folder / FILES[kind] for kind in chosen}, errors, metadata)


def check_formats(formats: Sequence[str]) -> list[Format]:
    """The formats, each once, known and with their packages at hand.

    Raises:
        UsageError: see `write_graphs`.
    """
    for name in formats:
        if name not in FILES:
            raise unknown("export format", name, FILES)
    chosen: list[Format] = [kind for kind in FILES if kind in formats]
    if not chosen:
        raise UsageError(f"no format was given; give one or more of {', '.join(FILES)}")
    if "onnx" in chosen:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ModuleNotFoundError as error:
            raise UsageError(f"ONNX needs the package {error.name!r}: pip install 'transept[export]'") from error
    return chosen


def onnx_runner(path: Path) -> Run:
    """An ONNX file in onnxruntime, on the CPU."""
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        fed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(output)) for output in session.run(None, fed)]

    return run


def pt2_runner(path: Path) -> Run:
    """A file of torch.export, run by torch."""
    graph = torch.export.load(path).module()

    @torch.no_grad()
    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        outputs = graph(*inputs)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


_RUNNERS: Mapping[Format, Callable[[Path], Run]] = {"onnx": onnx_runner, "pt2": pt2_runner}


def sample_picture() -> Image.Image:
    """A real photograph, 640 x 427, that scikit-learn brings along: what exports are checked with by default."""
    from sklearn.datasets import load_sample_image  # two seconds, which every verb would wait for

    return Image.fromarray(load_sample_image("china.jpg"))


def _write_onnx(
    program: ExportedProgram, path: Path, inputs: list[str], outputs: Sequence[Axis], metadata: Mapping[str, Any]
) -> None:
    # An extra.
    import onnx_ir
    from onnxscript.function_libs.torch_lib.ops.core import aten_sort

    with sdpa_kernel(SDPBackend.MATH), _quiet("onnxscript", "onnx_ir", "torch.onnx"):
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=inputs,
            output_names=[axis.output for axis in outputs],
            # Unknown to the exporter; as what it makes of `sort` is TopK, which is stable by its definition, that does.
            custom_translation_table={torch.ops.aten.sort.stable: aten_sort},
        )
    assert written is not None
    axes = [axis.counts for axis in outputs]
    for value, first in (
        *zip(written.model.graph.outputs, axes, strict=True),
        (written.model.graph.inputs[0], "batch"),
    ):
        assert value.shape is not None
        assert value.name
        # Axes of any length are else called after the arithmetic behind them.
        names = (first, None, f"{value.name}_height", f"{value.name}_width")
        sizes = [size if isinstance(size, int) else name for size, name in zip(value.shape, names, strict=False)]
        value.shape = onnx_ir.Shape(sizes)
    written.model.metadata_props[METADATA] = json.dumps(metadata, ensure_ascii=False)
    written.save(path, external_data=False)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without the exporters' notes on constants that they did not fold."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
