"""Graphs of any task: traced once, written in the formats of other runtimes, compared before they get a name.

The files carry what a caller must know (classes, preprocessing, size) as one JSON object: in ONNX the metadata property
`transept`, in torch.export's files and packages the extra file `transept.json`, in OpenVINO's the `rt_info` `transept`.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from transept.errors import UsageError, unknown
from transept.export.openvino import openvino_runner, write_openvino
from transept.export.package import write_package
from transept.extras import install
from transept.files import reserve, write_together
from transept.inference.compile import Dtype
from transept.inference.package import add_about, machine_facts, run_raw

Format = Literal["onnx", "pt2", "package", "openvino"]
FILES: Mapping[Format, str] = {
    "onnx": "model.onnx",
    "pt2": "model.pt2",
    "package": "model.package.pt2",
    "openvino": "model.xml",
}
DEFAULT_FORMATS: tuple[Format, ...] = ("onnx", "pt2")
_WEIGHTS = "model.bin"
"""Of OpenVINO's graph."""
_NEEDS: Mapping[Format, tuple[str, str, Sequence[str]]] = {
    "onnx": ("ONNX", "export", ("onnx", "onnxruntime", "onnxscript")),
    "openvino": ("OpenVINO", "openvino", ("onnx", "onnxscript", "openvino")),
}
"""The extra of a format, and its packages."""

LEAST_OPSET = 18
"""What the exporter's operators are written in. Asked for less, it writes this all the same, or what none reads."""

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
    dtype: Dtype = "float32",
    opset: int | None = None,
) -> Exported:
    """Trace `module` with example inputs, by name, and write the files of `FILES` to `folder`.

    Every file is read back and handed to `compare`, which returns the differences or raises; then only do the files
    get their names, all of them or none.

    Args:
        dynamic: axes of every input that may have other lengths than the example's, which are then 2 or more.
        dtype: what a package computes in, and OpenVINO's graph is compared in. The other files hold float32.
        opset: of ONNX, `LEAST_OPSET` or more; default: the exporter's.

    Raises:
        UsageError: an unknown format, the packages that write and run it are not installed, or an opset that cannot be
            written or read here.
        TranseptError: the folder cannot be written to, or what `compare` raises.
    """
    chosen = check_formats(formats)
    check_opset(opset, chosen)
    names = {"inputs": list(inputs), "outputs": [axis.output for axis in outputs]}
    metadata = {"transept": version("transept"), **names, **metadata}
    if {"package", "openvino"} & {*chosen}:
        metadata["dtype"] = dtype
    reserve(folder, len(chosen) * sum(p.numel() * p.element_size() for p in module.parameters()))
    shapes = tuple(dynamic for _ in inputs)

    # The graph must not rely on the memory layout of one machine's fused attention.
    @cache  # packages alone have no need of it
    def program() -> ExportedProgram:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes)

    errors: dict[Format, dict[str, float]] = {}

    def write_onnx(path: Path) -> None:
        _write_onnx(program(), path, list(inputs), outputs, metadata, opset)
        errors["onnx"] = compare("onnx", onnx_runner(path))

    def write_pt2(path: Path) -> None:
        torch.export.save(program(), path, extra_files={_EXTRA_FILE: json.dumps(metadata)})
        errors["pt2"] = compare("pt2", pt2_runner(path))

    def write_compiled(path: Path) -> None:
        write_package(module, list(inputs.values()), dynamic, path, dtype)
        errors["package"] = compare("package", lambda values: run_raw(path, values))
        add_about(path, {**metadata, **machine_facts(), "errors": errors["package"]})

    def write_graph(path: Path) -> None:
        with tempfile.TemporaryDirectory() as name:
            source = path.with_name(FILES["onnx"])
            if "onnx" not in chosen:
                source = Path(name, FILES["onnx"])
                _write_onnx(program(), source, list(inputs), outputs, metadata, opset)
            write_openvino(source, path, json.dumps(metadata, ensure_ascii=False), METADATA)
        errors["openvino"] = compare("openvino", openvino_runner(path, dtype))

    writers: dict[Format, Callable[[Path], None]] = {
        "onnx": write_onnx,
        "pt2": write_pt2,
        "package": write_compiled,
        "openvino": write_graph,
    }
    files = {FILES[kind]: writers[kind] for kind in chosen}
    if "openvino" in chosen:
        files[_WEIGHTS] = lambda path: None  # written with the graph
    write_together(folder, files)
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
    for kind in chosen:
        title, extra, packages = _NEEDS.get(kind, ("", "", ()))
        for package in packages:
            if find_spec(package) is None:
                raise UsageError(f"{title} needs the package {package!r}: {install(extra)}")
    return chosen


def check_opset(opset: int | None, formats: Sequence[str]) -> None:
    """Whether an opset may be asked for, of these formats.

    Raises:
        UsageError: it is too low, or no format is made of ONNX.
    """
    if opset is None:
        return
    if not {"onnx", "openvino"} & {*formats}:
        raise UsageError(f"opset={opset} is of ONNX, which none of the formats {', '.join(formats)} is; leave it out")
    if opset < LEAST_OPSET:
        raise UsageError(f"opset={opset} cannot be written: torch writes {LEAST_OPSET} and later ones")


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


def _write_onnx(
    program: ExportedProgram,
    path: Path,
    inputs: list[str],
    outputs: Sequence[Axis],
    metadata: Mapping[str, Any],
    opset: int | None,
) -> None:
    # An extra.
    import onnx_ir
    from onnxscript.function_libs.torch_lib.ops.core import aten_sort

    with sdpa_kernel(SDPBackend.MATH), _quiet("onnxscript", "onnx_ir", "torch.onnx"):
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=inputs,
            output_names=[axis.output for axis in outputs],
            # Unknown to the exporter; as what it makes of `sort` is TopK, which is stable by its definition, that does.
            custom_translation_table={torch.ops.aten.sort.stable: aten_sort},
        )
    assert written is not None
    got = written.model.opset_imports[""]
    if opset not in (None, got):
        raise UsageError(f"opset={opset} cannot be written: torch {torch.__version__} writes {got} in its place")
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
