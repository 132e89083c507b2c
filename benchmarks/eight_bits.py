"""Eight bits beside bfloat16 and float32: `uv run --with torchao python benchmarks/eight_bits.py` (ten minutes).

A full-size model in the forms that transept has, and quantised by each of the three that know how: PyTorch (PT2E with
the x86 Inductor quantiser, which torchao carries on), NNCF for OpenVINO, and onnxruntime. Medians of calls in turns.
Weights are random, which cost as much as others; ranges are read off crops of scikit-learn's two photographs.

With `--run RUN` a trained classifier's validation pictures are answered in every form, too.
"""

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

import transept
from transept.data.classification.sets import load_splits
from transept.data.classification.transforms import eval_transform, preprocessing_of
from transept.data.measure import spread
from transept.export.int8 import export_int8
from transept.export.onnx import Run, onnx_runner
from transept.export.openvino import openvino_runner
from transept.files import write_atomically
from transept.inference.compile import own_compiled
from transept.inference.processor import fast_bfloat16
from transept.tasks.classify import Classifier
from transept.turns import take_turns

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 8)
CALIBRATION = 64
PACKAGES = ("torch", "torchao", "openvino", "nncf", "onnxruntime")

Answer = Callable[[Tensor], Tensor]


def crops(count: int) -> list[Any]:
    draw, photos = np.random.default_rng(0), [Image.fromarray(array) for array in load_sample_images().images]
    corners = draw.uniform(size=(count, 2))
    return [
        photos[i % 2].crop((int(x * 340), int(y * 127), int(x * 340) + 300, int(y * 127) + 300))
        for i, (x, y) in enumerate(corners)
    ]


def inputs(task: Classifier, pictures: Sequence[Any]) -> Tensor:
    transform = eval_transform(task.preprocessing)
    return torch.stack([transform(picture) for picture in pictures])


def by_pytorch(model: Any, images: Tensor, batch: int) -> Answer:
    """PT2E: linear layers and convolutions in 8 bits, all else in float32, compiled for a batch."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    with torch.no_grad():
        graph = torch.export.export(model, (images[:batch],)).module()
        quantiser = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(graph, quantiser)
        for some in images.split(batch):
            prepared(some)
        converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return own_compiled(converted, dynamic=False)


def by_nncf(onnx: Path, images: Tensor, folder: Path) -> Run:
    import nncf
    import openvino

    model = openvino.Core().read_model(onnx)
    data = nncf.Dataset([image[None].numpy() for image in images])
    quantised = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    openvino.save_model(quantised, folder / "int8.xml", compress_to_fp16=False)
    return openvino_runner(folder / "int8.xml", "bfloat16")  # of what is not in 8 bits


def exported(task: Classifier, pictures: list[Any], folder: Path) -> dict[str, Answer]:
    """The forms of other runtimes, which take any number of images."""
    task.export(folder, formats=["onnx"])
    onnx, int8 = folder / "model.onnx", export_int8(task, folder, pictures).file
    runs = {
        "float32 OpenVINO": openvino_runner(onnx, "float32"),
        "bfloat16 OpenVINO": openvino_runner(onnx, "bfloat16"),
        "int8 NNCF OpenVINO": by_nncf(onnx, inputs(task, pictures), folder),
        "int8 onnxruntime": onnx_runner(int8),
    }
    return {name: lambda images, run=run: run([images])[0] for name, run in runs.items()}


def compiled(task: Classifier, pictures: list[Any], batch: int) -> dict[str, Answer]:
    return {
        "float32 compiled": transept.compile(task.model, "float32", batch),
        "bfloat16 compiled": transept.compile(task.model, "bfloat16", batch),
        "int8 PT2E compiled": by_pytorch(task.model, inputs(task, pictures), batch),
    }


def timed(answers: dict[str, Answer], images: Tensor, repetitions: int) -> dict[str, Any]:
    with torch.inference_mode():
        logits = {name: answer(images).float() for name, answer in answers.items()}
        calls = [lambda answer=answer: answer(images) for answer in answers.values()]
        seconds = take_turns(calls, torch.device("cpu"), repetitions)
    expected = logits["float32 compiled"]
    errors = {name: float((each - expected).square().mean().sqrt() / expected.std()) for name, each in logits.items()}
    return {
        name: {"ms": round(statistics.median(series) * 1e3, 2), "error": round(errors[name], 5)}
        for name, series in zip(answers, seconds, strict=True)
    }


def of_digits(run: str, repetitions: int) -> dict[str, Any]:
    """The same of a run of the recipe digits, with the top-1 of its validation pictures."""
    task: Any = transept.load(run).eval()
    splits, batch = load_splits("digits"), max(BATCHES)
    calibration = [splits.train[i][0] for i in spread(len(splits.train), CALIBRATION)]
    images = inputs(task, [picture for picture, _ in splits.val])
    labels = torch.tensor([label for _, label in splits.val])
    whole = len(images) // batch * batch
    with tempfile.TemporaryDirectory() as folder:
        answers = compiled(task, calibration, batch) | exported(task, calibration, Path(folder))
        found = timed(answers, images[:batch], repetitions)
        with torch.inference_mode():
            for name, answer in answers.items():
                best = torch.cat([answer(some).argmax(dim=1) for some in images[:whole].split(batch)])
                found[name]["top1"] = round(100 * float((best == labels[:whole]).float().mean()), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="xcit_small_12_p16_224")
    parser.add_argument("--run", help="of the recipe digits")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "eight_bits.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}, "bfloat16": fast_bfloat16()}
    torch.manual_seed(0)
    model = transept.create_model(args.model).eval()
    task, pictures = Classifier(model, list(map(str, range(1000))), preprocessing_of(model)).eval(), crops(CALIBRATION)
    with tempfile.TemporaryDirectory() as folder:
        others = exported(task, pictures, Path(folder))
        for batch in BATCHES:
            answers = compiled(task, pictures, batch) | others
            result[f"{args.model}, {batch}"] = timed(answers, inputs(task, pictures[:batch]), args.repetitions)
    if args.run:
        result[f"digits, {max(BATCHES)}"] = of_digits(args.run, args.repetitions)
    text = json.dumps(result, indent=1)
    write_atomically(args.out, lambda path: path.write_text(text + "\n"))
    print(text)


if __name__ == "__main__":
    main()
