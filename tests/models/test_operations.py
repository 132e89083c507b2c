"""What a forward pass costs beside its products: calls of kernels, and copies. Seconds vary, these do not.

The numbers are those of today. A change that lowers one lowers it here; a change that raises one says why.
"""

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import transept
from tests.helpers import image, tiny


class Calls(NamedTuple):
    kernels: int
    copies: int


# Two blocks of the isotropic models, four of CabViT-P, stages of 1, 1, 2, 1 of the others.
COUNTS = {  #                 eager           fused
    "xcit_nano_12_p16_224": (Calls(89, 5), Calls(85, 5)),
    "cait_xxs24_224": (Calls(70, 4), Calls(76, 4)),  # more where a few images at a time are quicker
    "cat_tiny": (Calls(207, 19), Calls(182, 19)),
    "crossformer_tiny": (Calls(85, 10), Calls(85, 10)),
    "cabvit_h_l1": (Calls(79, 1), Calls(65, 1)),
    "cabvit_p_l0": (Calls(44, 0), Calls(44, 0)),
    "crossvit_tiny_240": (Calls(157, 2), Calls(175, 8)),  # one query goes to the tokens, in products of a few rows
    "bixt_ti_l64_p16": (Calls(103, 12), Calls(103, 12)),
}
UNCOUNTED = {"_unsafe_view", "_reshape_alias", "empty", "gelu"}
"""A fused model has GELU in the product before it where that is quicker on this processor."""
COPIES = {"clone", "copy_", "_to_copy", "contiguous"}


class _Counter(TorchDispatchMode):
    """Calls that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def calls(model: nn.Module) -> Calls:
    model(image())  # what evaluation keeps is there from the second call on
    with _Counter() as counter:
        model(image())
    return Calls(
        sum(n for name, n in counter.calls.items() if name not in UNCOUNTED),
        sum(n for name, n in counter.calls.items() if name in COPIES),
    )


@pytest.mark.parametrize("name", COUNTS)
def test_calls_of_a_forward_pass(name: str):
    model = tiny(name).eval()
    eager, fused = COUNTS[name]
    for form, limit in ((model, eager), (transept.fuse(model), fused)):
        counted = calls(form)
        assert counted.kernels <= limit.kernels
        assert counted.copies <= limit.copies


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "cait_xxs24_224"])
def test_fewer_calls_than_timm(name: str):
    import timm

    ours, theirs = tiny(name).eval(), timm.create_model(name, img_size=64, depth=2, num_classes=7).eval()
    assert not type(theirs).__module__.startswith("transept")
    assert calls(ours).kernels < 0.9 * calls(theirs).kernels
    assert calls(ours).copies < calls(theirs).copies


def saved_bytes(model: nn.Module) -> int:
    """What a training step keeps between forward and backward, parameters aside."""
    own = {t.untyped_storage().data_ptr() for t in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.train()(image(4, 128, 128))
    del out
    return sum(kept.values())


@pytest.mark.parametrize(("name", "share"), [("xcit_nano_12_p16_224", 0.71), ("cait_xxs24_224", 0.62)])
def test_training_keeps_less_than_timm(name: str, share: float):
    import timm

    theirs = timm.create_model(name, img_size=128, depth=4)
    ours = transept.create_model(name, img_size=128, depth=4)
    assert saved_bytes(ours) < share * saved_bytes(theirs)
