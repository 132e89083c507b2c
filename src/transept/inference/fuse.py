"""A model with its constants folded into its weights: the same outputs, less work at inference."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from transept.errors import TranseptError
from transept.inference.fused import (
    FusedCrossAttention,
    FusedCrossPatch,
    FusedLocalPatchInteraction,
    FusedQueryKeyValue,
    FusedTalkingHeads,
    Pointwise,
)
from transept.inference.packed import GeluConv2d, no_trials, pack
from transept.layers.linear import Linear
from transept.layers.position_bias import KeepsBias
from transept.layers.projection import QueryKeyValue
from transept.layers.residual import Mlp
from transept.models import bixt, cabvit_block, cabvit_h, cait, cat, crossvit, xcit
from transept.models.backbone import Backbone

M = TypeVar("M", bound=nn.Module)

SCALED: dict[type[nn.Module], dict[str, str]] = {
    xcit.XCABlock: {"gamma1": "attn.proj", "gamma2": "mlp.fc2", "gamma3": "local_mp.conv2"},
    xcit.ClassAttentionBlock: {"gamma2": "mlp.fc2"},  # gamma1 scales the normalised patches, too
    cait.TalkingHeadsBlock: {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"},
    cait.ClassAttentionBlock: {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"},
    bixt.CrossAttentionBlock: {
        "ls1_lat.gamma": "attn.proj_lat",
        "ls1_pat.gamma": "attn.proj_pat",
        "ls2_lat.gamma": "mlp_lat.fc2",
        "ls2_pat.gamma": "mlp_pat.fc2",
    },
    bixt.SelfAttentionBlock: {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"},
    cabvit_block.CabBlock: {"gamma_1": "proj", "gamma_2": "mlp.fc2"},
    cabvit_h.ConvNeXtBlock: {"gamma": "pwconv2"},
    cabvit_h.CFBlock: {"layer_scale_1": "dwconv", "layer_scale_2": "mlp.fc2"},
}
"""Blocks, their LayerScales, and the layer whose outputs each of them scales."""

REPLACED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    xcit.LocalPatchInteraction: FusedLocalPatchInteraction,
    cait.TalkingHeadsAttention: FusedTalkingHeads,
    crossvit.CrossAttention: FusedCrossAttention,
    cat.CrossPatchSelfAttention: FusedCrossPatch,
    QueryKeyValue: FusedQueryKeyValue,
    nn.Linear: pack,
    Linear: pack,
}

ACTIVATED: dict[type[nn.Module], tuple[str, str]] = {
    Mlp: ("fc1", "act"),
    cabvit_block.NormedMlp: ("fc1", "act"),
    cabvit_h.ConvNeXtBlock: ("pwconv1", "act"),
}
"""Linear layers that GELU follows, and its name."""

POINTWISE: dict[type[nn.Module], tuple[str, ...]] = {cabvit_h.Downsample: ("conv1.c", "conv3.c")}
"""1x1 convolutions whose maps are channels-last in memory."""


def fuse(model: M) -> M:
    """A copy for inference with the same outputs up to rounding: 1e-5 of the logits' spread in float32.

    BatchNorm is folded into the convolution before it (XCiT's, which comes before one, into the convolution after it
    and a map), LayerScale into the layer before it; CAT's projections across patches into their products. Linear
    layers hold their weights as the CPU's products want them, too, and compute the GELU that follows. Position biases
    of the native image size are buffers. LayerNorm keeps its weight and bias, with which PyTorch is faster than
    without them.

    Args:
        model: a classifier, a pyramid (`features_only=True`), or what contains one: a detector or segmenter. It is
            left as it is.

    Returns:
        The copy, in evaluation mode, on the model's device and in its dtype. No parameter takes a gradient, `train()`
        raises an error, and the names of its weights are not those of the model: save and change the model, and fuse
        it again.

    Raises:
        TranseptError: `model` contains no model of transept's.
    """
    if not any(isinstance(module, Backbone) for module in model.modules()):
        raise TranseptError(
            f"cannot fuse a {type(model).__name__}: it contains no model of transept; give one of create_model,"
            " create_detector or create_segmenter"
        )
    fused = copy.deepcopy(model).eval()
    with torch.inference_mode(False), torch.no_grad():
        for module in list(fused.modules()):
            if isinstance(module, nn.Sequential):
                _fold_norms(module)
        for module in list(fused.modules()):
            if isinstance(module, nn.Sequential):
                _fold_activations(module)
            for scale, layer in SCALED.get(type(module), {}).items():
                _fold_scale(module, scale, layer)
            for name in POINTWISE.get(type(module), ()):
                conv = module.get_submodule(name)
                if isinstance(conv, nn.Conv2d):  # not fused before
                    module.set_submodule(name, Pointwise(conv))
            layer, act = ACTIVATED.get(type(module), ("", ""))
            if type(getattr(module, layer, None)) is Linear and type(getattr(module, act)) is nn.GELU:
                setattr(module, layer, pack(getattr(module, layer), activate=True))
                setattr(module, act, nn.Identity())
        for module in list(fused.modules()):
            for name, child in list(module.named_children()):
                if replacement := REPLACED.get(type(child)):
                    setattr(module, name, replacement(child))
        fused.eval().requires_grad_(False)
        for module in fused.modules():
            if isinstance(module, Backbone):
                _fix_biases(module)
                module.for_inference = True
                module.grad_checkpointing = False
    return fused


def _fold_norms(layers: nn.Sequential) -> None:
    """Convolutions that a BatchNorm follows take it in; an identity keeps its place."""
    for (name, conv), (norm_name, norm) in pairwise(list(layers.named_children())):
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
            setattr(layers, name, fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d)))
            setattr(layers, norm_name, nn.Identity())


def _fold_activations(layers: nn.Sequential) -> None:
    """A convolution that stands alone computes the GELU that follows; an identity keeps its place."""
    for (_, layer), (act_name, act) in pairwise(list(layers.named_children())):
        if isinstance(layer, nn.Sequential) and isinstance(act, nn.GELU) and act.approximate == "none":
            name, conv = next(layer.named_children())
            if type(conv) is nn.Conv2d and all(isinstance(other, nn.Identity) for other in list(layer)[1:]):
                setattr(layer, name, GeluConv2d(conv))
                setattr(layers, act_name, nn.Identity())


def _fold_scale(block: nn.Module, name: str, layer_name: str) -> None:
    path, _, leaf = name.rpartition(".")
    owner = dict(block.named_modules()).get(path)  # of an empty path the block itself
    if owner is None:  # a block that ends one of its streams has no scale there
        return
    scale = getattr(owner, leaf)
    if scale is None:  # fused before, or the model has none
        return
    layer = block.get_submodule(layer_name)
    for key, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, key, nn.Parameter(parameter * scale.view(-1, *[1] * (parameter.ndim - 1))))
    setattr(owner, leaf, None)


def _fix_biases(model: Backbone) -> None:
    """Make position biases of the native size buffers, as one image of that size leaves them."""
    keeping = [module for module in model.modules() if isinstance(module, KeepsBias)]
    if keeping:
        image: Tensor = next(model.parameters()).new_zeros(1, *model.pretrained_cfg["input_size"])
        with no_trials():  # seconds, for one image that is none
            model(image)
    for module in keeping:
        module.fix()
