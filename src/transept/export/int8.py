"""Classifiers with 8-bit weights and activations for CPUs, made of their ONNX files by onnxruntime.

Weights have a scale for each output channel, activations one each, read off calibration pictures (QDQ format). Linear
layers and convolutions are quantised. Products of two activations (attention, cross-covariance), softmax and norms stay
in float32: their values range over orders of magnitude, and they hold no weights that could shrink.
"""

import json
import logging
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transept.data.classification.transforms import Preprocessing, eval_transform
from transept.data.images import Picture
from transept.errors import TranseptError, UsageError
from transept.export.onnx import FILES, METADATA, check_formats, onnx_runner
from transept.files import write_together
from transept.turns import take_turns

INT8_FILE = "model.int8.onnx"
CALIBRATION_PICTURES = 128
"""How many the command takes, spread evenly over what there is; more changed nothing measurable."""
_QUANTISED = ("MatMul", "Gemm", "Conv")


class _Classifier(Protocol):
    """The part of `tasks.classify.Classifier` that the export needs."""

    @property
    def kind(self) -> str: ...

    @property
    def has_int8(self) -> bool: ...

    preprocessing: Preprocessing

    labelling: Any

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor: ...


class Quantised(NamedTuple):
    """The file written, and how far it is from the float file."""

    file: Path
    sizes: dict[str, int]
    """Bytes of the `float` and the `int8` file."""
    layers: int
    """How many linear layers and convolutions are quantised."""
    error: float
    """Root mean square difference of the logits of the calibration pictures, in their standard deviations."""


class Comparison(NamedTuple):
    """The score of the float and the int8 file."""

    scores: tuple[float, float]
    key: str
    """Which: `top1`, or `map` where a picture has any number of labels."""
    images: int


def export_int8(task: _Classifier, folder: str | PathLike[str], pictures: Sequence[Picture]) -> Quantised:
    """Write `model.int8.onnx` beside the `model.onnx` that `export_logits` wrote to `folder`, with its metadata.

    Args:
        task: the classifier of that file, for its preprocessing.
        pictures: what the ranges of activations are read off, a hundred or so of those that the model was trained on.

    Raises:
        UsageError: no classifier, no pictures, or packages that are not installed.
        TranseptError: there is no `model.onnx`, or the folder cannot be written to.
    """
    check_formats(["onnx"])
    if not task.has_int8:
        raise UsageError(f"8-bit files are made of classifiers, and this is a {task.kind}")
    if not pictures:
        raise UsageError("calibration needs pictures, a hundred or so of those that the model was trained on")
    folder = Path(folder)
    source = folder / FILES["onnx"]
    if not source.is_file():
        raise TranseptError(f"there is no {str(source)!r}; export the classifier to ONNX first")
    transform = eval_transform(task.preprocessing)
    images = [transform(picture)[None] for picture in pictures]
    layers = 0

    def write(path: Path) -> None:
        nonlocal layers
        layers = _quantise(source, path, images)

    write_together(folder, {INT8_FILE: write})
    file = folder / INT8_FILE
    batch = torch.cat(images)
    expected, quantised = (onnx_runner(path)([batch])[0] for path in (source, file))
    error = float((quantised - expected).square().mean().sqrt() / expected.std())
    return Quantised(file, {"float": source.stat().st_size, "int8": file.stat().st_size}, layers, error)


def compare_scores(
    folder: Path, task: _Classifier, batches: DataLoader | Iterable[tuple[Tensor, Tensor]]
) -> Comparison:
    """The score of both files of `export_int8` on the same labelled images."""
    runs = [onnx_runner(folder / name) for name in (FILES["onnx"], INT8_FILE)]
    meters = [task.labelling.training_meters()[1] for _ in runs]
    for images, labels in batches:
        for run, meter in zip(runs, meters, strict=True):
            (logits,) = run([images])
            meter.update(task.loss(logits, labels), logits, labels)
    key = task.labelling.score
    before, after = (meter.means()[key] for meter in meters)
    return Comparison((before, after), key, meters[0].samples)


def latency_ratio(folder: Path, images: Tensor, *, repetitions: int = 15) -> float:
    """The time of the int8 file over that of the float file, medians of runs in turns; below 1, int8 is faster."""
    runs = [onnx_runner(folder / name) for name in (FILES["onnx"], INT8_FILE)]
    seconds = take_turns([partial(run, [images]) for run in runs], images.device, repetitions)
    of_float, of_int8 = map(statistics.median, seconds)
    return of_int8 / of_float


def _quantise(source: Path, path: Path, images: Sequence[Tensor]) -> int:
    """Write the 8-bit file and return how many layers of it are quantised."""
    # An extra.
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{"images": image.numpy()} for image in images])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises what is done here
    try:
        with tempfile.TemporaryDirectory() as name:
            prepared = Path(name, "prepared.onnx")
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            nodes = _layers(onnx.load(prepared))
            quantize_static(
                prepared,
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_quantize=nodes,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
    finally:
        logging.getLogger().setLevel(level)
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: json.dumps({**json.loads(metadata[METADATA]), "precision": "int8"})})
    onnx.save(model, path)
    return len(nodes)


def _layers(model: Any) -> list[str]:
    """The names of linear layers and convolutions: what multiplies an activation with a weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _QUANTISED and not set(node.input[:2]).isdisjoint(weights)
    ]
