"""The fastest form of a model on this machine: compiled by Inductor, its weights constants, in the best precision.

A compiler sees what a library of kernels cannot: what one layer writes and the next reads stays in the cache, and
weights lie as the products of this processor want them. It costs a minute, and a C++ compiler.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from threading import RLock
from time import perf_counter
from types import FunctionType
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from transept.data.images import sample_picture
from transept.data.resizing import Size, squashed
from transept.errors import TranseptError, UsageError, unknown
from transept.heads.roi import BoxHead, MaskHead
from transept.inference.fuse import fuse
from transept.inference.packed import fixed_sizes, no_trials
from transept.inference.processor import fast_bfloat16
from transept.models.backbone import Backbone, native_size

M = TypeVar("M", bound=nn.Module)

Dtype = Literal["float32", "bfloat16"]
Precision = Literal["auto", Dtype]
FormName = Literal["compiled", "fused", "eager"]

BFLOAT16_LIMIT = 0.1
"""The largest difference from float32 that "auto" accepts of bfloat16, in the standard deviation of the outputs."""

_numbers = itertools.count()
_freezing = RLock()
"""Held while weights are made constants, which Dynamo does by a setting of the whole process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What a model was made into, and why."""

    name: FormName
    dtype: Dtype
    reason: str
    error: float
    """The largest difference from float32 in eager mode on a photograph, in the standard deviation of the outputs."""
    seconds: float
    """The time it took to make."""

    def __str__(self) -> str:
        return f"{self.name} in {self.dtype}: {self.reason}; outputs differ by {self.error:.1g} of their spread"


def compile(
    model: M, dtype: Precision = "auto", batch: int | None = None, img_size: int | Sequence[int] | None = None
) -> M:
    """A copy for inference, in the fastest form that this machine has: compiled, or where that cannot be `fuse`'s.

    It is called as the model is, with float32 images, and gives float32 outputs, under `torch.inference_mode`. It takes
    images of other batches and sizes too: the first such call compiles anew. The copy's `form` says which form it is in
    and why, and how much its outputs differ.

    Args:
        model: a classifier, a pyramid (`features_only=True`), or what contains one: a detector, a segmenter. It is left
            as it is. Of a detector the network is compiled; what makes objects of its outputs stays as it is.
        dtype: the precision of weights and layers. "auto" is bfloat16 where this processor multiplies it faster than
            float32 and outputs differ by no more than `BFLOAT16_LIMIT` of their spread, else float32.
        batch: how many images a call has; None: any number, which costs nothing where products dominate.
        img_size: height and width of the images; default: the model's native size.

    Returns:
        The copy, in evaluation mode, on the model's device. No parameter takes a gradient, and `train()` raises an
        error.

    Raises:
        UsageError: an unknown dtype, or a batch or size that cannot be.
        TranseptError: `model` contains no model of transept's, or takes no images of this size.
    """
    if dtype not in get_args(Precision):
        raise unknown("dtype of a compiled form", dtype, get_args(Precision), _hint(dtype))
    if batch is not None and batch < 1:
        raise UsageError(f"batch={batch} must be positive")
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    if not backbones:
        raise TranseptError(
            f"cannot compile a {type(model).__name__}: it contains no model of transept; give one of create_model,"
            " create_detector or create_segmenter"
        )
    started = perf_counter()
    fused = fuse(model)
    size = backbones[0].config.img_size if img_size is None else native_size(img_size)
    images = sample_images(backbones[0], size, batch or 2).to(next(model.parameters()).device)
    with torch.inference_mode():
        expected = tree_leaves(at_size(fused.float(), images))
    chosen, reason = best_precision(dtype, images.device)
    for precision in dict.fromkeys((chosen, "float32")):
        made = in_precision(copy.deepcopy(fused), precision)
        name: FormName = "compiled"
        if problem := compiler_problem(images.device):
            name = "fused"
        else:
            try:
                _compile_parts(made, images, dynamic=batch is None)
            except Exception as error:  # a compiler's failures have no common class
                what = shorten(str(error).strip().partition("\n\n")[0], 160, placeholder=" ...")
                name, problem = "fused", f"it cannot be compiled here ({what})"
                made = in_precision(copy.deepcopy(fused), precision)
        with torch.inference_mode():
            error = spread_error(expected, tree_leaves(made(images)))
        if dtype == "auto" and precision == "bfloat16" and (refused := _too_far(error)):
            reason = refused
            continue
        made.form = Form(  # pyright: ignore[reportArgumentType] - a note, not a submodule
            name=name,
            dtype=precision,
            reason="; ".join(filter(None, (reason, problem))),
            error=error,
            seconds=perf_counter() - started,
        )
        return made
    raise AssertionError("float32 is always accepted")


class Checked(NamedTuple, Generic[M]):
    """The precision that a model's fused form takes, and what is known of it."""

    precision: Dtype
    reason: str
    fused: M | None = None
    """The model in this form, where it was made to compare outputs."""


def checked_precision(model: M, dtype: Precision = "auto", images: Tensor | None = None) -> Checked[M]:
    """The precision that a model's fused form takes, chosen as `compile` does.

    Args:
        model: any.
        dtype: see `compile`.
        images: on which outputs are compared; default: a photograph in the native size of the backbone in it.
    """
    device = next(model.parameters()).device
    precision, reason = best_precision(dtype, device)
    if dtype != "auto" or precision == "float32":
        return Checked(precision, reason)
    if images is None:
        backbone = next((module for module in model.modules() if isinstance(module, Backbone)), None)
        if backbone is None:
            return Checked("float32", "no size of images is known on which bfloat16 could be tried")
        images = sample_images(backbone, backbone.config.img_size, 1).to(device)
    fused = in_precision(fuse(model), precision)
    with torch.inference_mode(), no_trials():  # other numbers of images will come
        error = spread_error(tree_leaves(model(images)), tree_leaves(fused(images)))
    refused = _too_far(error)
    return Checked("float32", refused) if refused else Checked(precision, reason, fused)


def _too_far(error: float) -> str:
    """Why "auto" does not take bfloat16; empty where it does."""
    if error <= BFLOAT16_LIMIT:
        return ""
    return f"bfloat16 differs by {error:.2g} of the spread, where {BFLOAT16_LIMIT:g} is allowed"


def sample_images(model: Backbone, size: Size, count: int) -> Tensor:
    """A photograph and its mirror image in turns, resized and normalised for the model: `count c H W`.

    Other channels than three repeat those.
    """
    config = model.pretrained_cfg
    channels = torch.arange(config["input_size"][0]) % 3
    image = squashed(sample_picture(), size, config["mean"], config["std"])[channels]
    return torch.stack([image, image.flip(-1)])[torch.arange(count) % 2]


def in_precision(model: M, dtype: str) -> M:
    """The same model with its layers in this dtype, which takes and gives float32 as before. It is changed in place."""
    if dtype == "float32":
        return model.float()
    for part in parts(model):
        part.register_forward_pre_hook(_CastInputs(getattr(torch, dtype)))
        part.register_forward_hook(_CastOutputs())
    return model.to(getattr(torch, dtype))


def parts(model: nn.Module) -> list[nn.Module]:
    """What is called from outside of graphs: the model, and heads that look at regions found by it."""
    return [model, *(module for module in model.modules() if isinstance(module, BoxHead | MaskHead))]


def spread_error(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """The largest difference of outputs, each in its own standard deviation; infinite where shapes differ."""
    errors = []
    for a, b in zip(expected, actual, strict=True):
        spread = a.float().std() if a.numel() > 1 else a.float().abs().max()
        difference = (a.float() - b.float()).abs().max() if a.shape == b.shape else torch.tensor(torch.inf)
        errors.append((difference / spread.clamp_min(1e-12)).cpu())
    return float(torch.stack(errors).max())  # of a NaN too, which Python's `max` may pass over


class _CastInputs:
    """Hooks are classes here: a copy of the model copies them, which closures do not survive."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, inputs: tuple) -> tuple:
        return tree_map(lambda each: _cast(each, self.dtype), inputs)


class _CastOutputs:
    def __call__(self, module: nn.Module, inputs: tuple, outputs: Any) -> Any:
        return tree_map(lambda each: _cast(each, torch.float32), outputs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def best_precision(dtype: Precision, device: torch.device) -> tuple[Dtype, str]:
    """The precision to try first, and why."""
    if dtype != "auto":
        return dtype, "as asked"
    if device.type == "cuda":
        fast = "this GPU multiplies it fast" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    else:
        unit = fast_bfloat16()
        fast = unit and f"this processor has {unit}"
    return ("bfloat16", fast) if fast else ("float32", "bfloat16 is no faster here")


def compiler_problem(device: torch.device) -> str:
    """Why nothing can be compiled on this machine; empty where it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # a second, which who does not compile would wait for
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        if device.type == "cpu":
            get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler, such as g++"
    return ""


def _compile_parts(model: nn.Module, images: Tensor, *, dynamic: bool) -> None:
    """Compile every part; the network is called once, so that what cannot be compiled fails here."""
    for part in parts(model):
        # A head on regions is given another number of them each time.
        part._compiled_call_impl = own_compiled(part, dynamic=dynamic or part is not model)
    if dynamic:
        torch._dynamo.maybe_mark_dynamic(images, 0)
    model(images)


def own_compiled(module: nn.Module, *, dynamic: bool, frozen: bool = True) -> Callable[..., Any]:
    """What calls `module` compiled; frozen, it is what it was at the first call, and no gradients are recorded.

    Dynamo counts recompilations by code object, and remembers by its name which sizes have changed, in all of the
    process: this one is the module's own in both. Else a second model of another size would at once be compiled for any
    size, with constants for one.
    """

    def call(*inputs: Any) -> Any:
        return module._call_impl(*inputs)

    code = call.__code__.replace(co_name=f"call_{next(_numbers)}")
    own = FunctionType(code, call.__globals__, closure=call.__closure__)
    shapes = None if dynamic else False
    if not frozen:
        return torch.compile(own, dynamic=shapes)
    # Before each call Dynamo would ask every module whether it is as it was: 0.4 ms of the 7 of XCiT-N12/16. What is
    # constant answers that.
    unasked: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    compiled = torch.compile(own, dynamic=shapes, options=unasked)
    from torch._inductor import config  # what torch loads to compile, and seconds for who does not

    known: set[tuple] = set()
    sizes: set[tuple] = set()

    def run(*inputs: Any) -> Any:
        kind = tuple(
            (each.shape, each.stride(), each.dtype) if isinstance(each, Tensor) else each
            for each in tree_leaves(inputs)
        )
        with torch.inference_mode():  # weights are frozen where no gradients are recorded
            if kind in known:
                return compiled(*inputs)
            # Dynamo asks the setting itself whether weights are constants, and not the options of `torch.compile`:
            # given there, "freezing" changes nothing (torch 2.15). Kernels are called from C++: few images are done
            # before Python has called them all.
            # In graphs for any size constants give XCiT's convolutions of tokens a layout that they do not have, and
            # the call fails (torch 2.15): weights are constants while all images have one size.
            images = [each for each in tree_leaves(inputs) if isinstance(each, Tensor)]
            sizes.add(tuple(each.shape[1:] for each in images))
            frozen = len(sizes) == 1
            fixed = not dynamic or len(images[0]) == 1  # Dynamo never takes one for any number
            by_onednn = fixed_sizes(frozen and fixed and images[0].device.type == "cpu")
            with _freezing, by_onednn, config.patch(freezing=frozen, cpp_wrapper=True):
                outputs = compiled(*inputs)
            known.add(kind)
            return outputs

    return run


def at_size(model: nn.Module, images: Tensor) -> Any:
    """The model's outputs; what it says of a size that it does not take becomes a `UsageError`."""
    try:
        return model(images)
    except ValueError as error:
        raise UsageError(f"img_size={images.shape[-2]} x {images.shape[-1]}: {error}") from error


def _hint(dtype: str) -> str:
    return "8 bits are for ONNX Runtime: transept export --int8" if dtype == "int8" else ""
