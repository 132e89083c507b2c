"""How fast models are, beside others in the same run.

Machines are shared and change their pace. All that is compared therefore takes turns, medians are compared and not
means, and every speed is also given as a share of what a large matrix product reaches in between.
"""

import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.profiler import ProfilerActivity, profile

from transept.cost.count import count
from transept.errors import TranseptError, UsageError, unknown
from transept.export.onnx import Axis, Format, Run, check_formats, onnx_runner, write_graphs
from transept.export.openvino import openvino_runner
from transept.inference.compile import compile, own_compiled
from transept.inference.fuse import fuse
from transept.inference.packed import PackedLinear
from transept.layers.linear import linear
from transept.models.registry import build_model, build_skeleton, find_model
from transept.turns import take_turns

Form = Literal["eager", "fused", "compiled", "onnxruntime", "openvino"]
_OF_PEERS = ("eager", "compiled")
_FOREIGN: Mapping[str, tuple[Format, Callable[[Path, str], Run]]] = {
    "onnxruntime": ("onnx", lambda path, dtype: onnx_runner(path)),
    "openvino": ("openvino", openvino_runner),
}
"""Other runtimes, and the format of the file that each runs."""
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One model in one form, on one shape of input."""

    model: str
    source: str
    """`transept`, or `timm` for a peer."""
    form: Form
    training: bool
    """A step, forward and backward; else inference."""
    img_size: tuple[int, int]
    batch: int
    p50: float
    """Seconds of a call: the median, and below the ninth decile and the least."""
    p90: float
    best: float
    images_per_second: float
    """By the median."""
    peak_memory: int
    """Bytes: the model's own and the most that a call has allocated at once. Of other runtimes the file's alone."""
    own_memory: int
    """Bytes of parameters, buffers and packed weights."""
    macs: int
    """Multiply-accumulates of one image, forward."""
    share: float
    """Multiply-accumulates per second (a step has three times those of inference), as a share of the product's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """The timings and the machine they were taken on."""

    machine: dict[str, Any]
    timings: list[Timing]

    def as_dict(self) -> dict[str, Any]:
        return {"machine": self.machine, "timings": [asdict(timing) for timing in self.timings]}


def bench(
    names: Sequence[str],
    *,
    peers: Sequence[str] | None = None,
    sizes: Sequence[int | tuple[int, int]] = (),
    batches: Sequence[int] = (1,),
    forms: Sequence[str] = ("eager", "fused"),
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    training: bool = False,
    repetitions: int = 15,
    report: Report = lambda line: None,
) -> Benchmark:
    """Time the named models with random weights, in turns with each other and with a matrix product.

    Args:
        peers: names of timm models to run beside, in eager mode and compiled where `forms` has that; timm's own form of
            each named model is added. None: no peers.
        sizes: image sizes; empty: each model's native one.
        forms: "eager", "fused" (`transept.fuse`), "compiled" (`transept.compile`; of a peer and of a training step
            `torch.compile`, a peer's weights frozen), and the exported model in "onnxruntime" (always float32) and
            "openvino".
        training: time training steps (forward, backward) instead of inference.
        repetitions: timed calls of each model, after two to warm up.
        report: called with a line about each timing.

    Raises:
        UsageError: an unknown model or form, a size that a model does not take, a number that cannot be, or a device
            that is not there.
    """
    for form in forms:
        if form not in get_args(Form):
            raise unknown("form", form, get_args(Form))
        if training and form not in _OF_PEERS:
            raise UsageError(f"form {form!r} is for inference; a training step is 'eager' or 'compiled'")
        if form in _FOREIGN:
            check_formats([_FOREIGN[form][0]])
    for what, values in (("batch", batches), ("repetitions", [repetitions]), ("size", [s for s in sizes if s])):
        for value in values:
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise UsageError(f"{what}={value} must be positive")
    place = _device(device)
    timings: list[Timing] = []
    rates: list[float] = []
    for size in sizes or (None,):
        models = _models(names, peers, size, forms)
        for batch in batches:
            group, rate = _race(models, batch, place, dtype, training, repetitions)
            timings += group
            rates.append(rate)
            for timing in group:
                report(describe(timing))
    return Benchmark(machine=_machine(place, dtype, statistics.median(rates)), timings=timings)


def describe(timing: Timing) -> str:
    """One line."""
    height, width = timing.img_size
    return (
        f"{timing.model} ({timing.source}, {timing.form}) {height} x {width}, batch {timing.batch}:"
        f" {1e3 * timing.p50:.1f} ms, {timing.images_per_second:.1f} images/s,"
        f" {timing.peak_memory / 2**20:.0f} MiB, {timing.share:.0%} of a matrix product"
    )


def growth(timings: Sequence[Timing], cost: Callable[[Timing], float] = lambda timing: timing.p50) -> float:
    """The exponent p of cost ~ pixels ** p, by least squares over the image sizes of one model: 1 is linear.

    The cost is the time if nothing else is given.
    """
    points = [(t.img_size[0] * t.img_size[1], cost(t)) for t in timings]
    if len({pixels for pixels, _ in points}) < 2:
        raise ValueError("growth needs two image sizes or more")
    pixels, costs = (torch.tensor(values, dtype=torch.float64).log() for values in zip(*points, strict=True))
    pixels = pixels - pixels.mean()
    return float((pixels * (costs - costs.mean())).sum() / pixels.square().sum())


def own_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, and of the weights that `fuse` has packed beside them."""
    if isinstance(model, _Exported):
        return model.size
    packed = sum(m.weight.nbytes for m in model.modules() if isinstance(m, PackedLinear) and m.is_packed)
    return packed + sum(t.nbytes for t in [*model.parameters(), *model.buffers()])


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    source: str
    form: Form
    make: Callable[[], nn.Module]
    img_size: tuple[int, int]
    macs: int


def _models(
    names: Sequence[str], peers: Sequence[str] | None, size: int | tuple[int, int] | None, forms: Sequence[str]
) -> list[_Entry]:
    entries: list[_Entry] = []

    def add(name: str, source: str, make: Callable[[], nn.Module], skeleton: nn.Module, forms: Sequence[str]) -> None:
        cost = count(skeleton, size)
        entries.extend(_Entry(name, source, form, make, cost.img_size, cost.macs) for form in forms)  # pyright: ignore[reportArgumentType]

    options: dict[str, Any] = {} if size is None else {"img_size": size}
    full_names = [find_model(name)[0] for name in names]
    for name in full_names:
        add(name, "transept", lambda name=name: build_model(name, **options), build_skeleton(name, **options), forms)
    if peers is None:
        return entries
    plain = [form for form in forms if form in _OF_PEERS] or ["eager"]
    for name in dict.fromkeys([*filter(_timm_has, full_names), *peers]):
        if not _timm_has(name):
            raise unknown("timm model", name, timm.list_models())
        with torch.device("meta"):
            skeleton = _timm_model(name, size)
        add(name, "timm", lambda name=name: _timm_model(name, size), skeleton, plain)
    return entries


def _timm_has(name: str) -> bool:
    """Whether timm has a model of its own by this name: ours are registered there, too."""
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("timm.")


def _timm_model(name: str, size: int | tuple[int, int] | None) -> nn.Module:
    if size is not None:
        with suppress(TypeError):  # what takes any size has no such argument
            return timm.create_model(name, img_size=size)
    return timm.create_model(name)


def _race(
    entries: Sequence[_Entry], batch: int, device: torch.device, dtype: torch.dtype, training: bool, repetitions: int
) -> tuple[list[Timing], float]:
    """The timings, and the multiply-accumulates per second of a matrix product in between."""
    side = 1024 if device.type == "cpu" else 8192
    square = torch.randn(side, side, device=device, dtype=dtype)
    calls: list[Callable[[], object]] = [lambda: linear(square, square)]  # by the library that the layers take
    memory = []
    for entry in entries:
        model = _in_form(entry, device, dtype, training, batch)
        # What is ours to call, and what other runtimes run, takes float32 whatever it computes in.
        takes = torch.float32 if entry.form in _FOREIGN or _by_transept(entry, training) else dtype
        images = torch.randn(batch, 3, *entry.img_size, device=device, dtype=takes)
        call = _step(model, images) if training else _inference(model, images)
        try:
            call()
        except ValueError as error:
            raise TranseptError(f"{entry.name}: {error}") from error
        resident = own_bytes(model)
        allocated = 0 if entry.form in _FOREIGN else _peak_memory(call, device)
        memory.append((resident, resident + allocated))
        calls.append(call)
    times = take_turns(calls, device, repetitions)
    rate = side**3 / statistics.median(times[0])
    timings = []
    for entry, seconds, (resident, peak) in zip(entries, times[1:], memory, strict=True):
        p50 = statistics.median(seconds)
        timings.append(
            Timing(
                model=entry.name,
                source=entry.source,
                form=entry.form,
                training=training,
                img_size=entry.img_size,
                batch=batch,
                p50=p50,
                p90=sorted(seconds)[int(0.9 * (len(seconds) - 1) + 0.5)],
                best=min(seconds),
                images_per_second=batch / p50,
                peak_memory=peak,
                own_memory=resident,
                macs=entry.macs,
                share=entry.macs * batch * (3 if training else 1) / p50 / rate,
            )
        )
    return timings, rate


def _in_form(entry: _Entry, device: torch.device, dtype: torch.dtype, training: bool, batch: int) -> nn.Module:
    model = entry.make().train(training)
    name = str(dtype).removeprefix("torch.")
    if entry.form in _FOREIGN:
        return _Exported(model, entry, name)
    if _by_transept(entry, training):
        return compile(model.to(device), name, batch, entry.img_size)  # pyright: ignore[reportArgumentType]
    model = model.to(device, dtype)
    if entry.form == "fused":
        return fuse(model)
    if entry.form == "compiled":
        model._compiled_call_impl = own_compiled(model, dynamic=False, frozen=not training)
    return model


def _by_transept(entry: _Entry, training: bool) -> bool:
    return entry.form == "compiled" and entry.source == "transept" and not training


class _Exported(nn.Module):
    """A model in another runtime, on the CPU."""

    def __init__(self, model: nn.Module, entry: _Entry, dtype: str) -> None:
        super().__init__()
        kind, runner = _FOREIGN[entry.form]
        with tempfile.TemporaryDirectory() as folder:
            inputs = {"images": torch.zeros(2, 3, *entry.img_size)}
            outputs, dynamic = [Axis("logits", "batch")], {0: Dim("batch", min=1)}
            exported = write_graphs(
                model.eval(), inputs, outputs, Path(folder), [kind], {}, lambda kind, run: {}, dynamic=dynamic
            )
            self.size = sum(file.stat().st_size for file in Path(folder).iterdir())
            self.run = runner(exported.files[kind], dtype)

    def forward(self, images: Tensor) -> Tensor:
        return self.run([images])[0]


def _inference(model: nn.Module, images: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def call() -> object:
        return model(images)

    return call


def _step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def call() -> object:
        model(images).float().square().mean().backward()
        model.zero_grad()
        return None

    return call


def _peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call allocates at most at once, beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    peak = now = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device={name!r} is not there: {str(error).splitlines()[0]}; use 'cpu'") from error
    return device


def _machine(device: torch.device, dtype: torch.dtype, rate: float) -> dict[str, Any]:
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "product_gmacs": rate / 1e9,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "transept": version("transept"),
    }


def processor() -> str:
    """Its name, as the system knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
