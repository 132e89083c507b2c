"""Where a model looks: the attention of each family, rollout, and Grad-CAM, as maps over the image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transept.errors import UsageError, unknown
from transept.models.attention import AttentionWeights, Grid, Places, ShowsAttention, class_row
from transept.models.backbone import Backbone
from transept.models.registry import family_of
from transept.ops.tokens import to_map

CLASS, ROLLOUT, GRAD_CAM = "class", "rollout", "grad-cam"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionMap:
    """The part of the image that one query of one layer looks at, in every head."""

    name: str
    """The module's, as in `model.named_modules()`."""
    kind: str
    stage: int
    """0 where a model has no stages."""
    block: int
    """Within the stage."""
    maps: Tensor
    """`b heads h w`, float32. Cross-patch attention has a map for every channel."""
    source: int | None = None
    """The earlier block of the stage whose digest is looked at, in "cross-block"; None: the tokens themselves."""
    over: Literal["image", "channels"] = "image"
    """Whether h and w are rows and columns of the image, or the channels of a head that attend to each other."""

    @property
    def heads(self) -> int:
        return self.maps.shape[1]

    @property
    def grid(self) -> Grid:
        """`(h, w)`."""
        return self.maps.shape[2], self.maps.shape[3]


def attention_kinds(model: nn.Module) -> list[str]:
    """The kinds that `attention_maps` can show of a model: its attention's, then rollout and Grad-CAM where defined.

    Raises:
        UsageError: not a model of ours.
    """
    backbone = _backbone(model)
    modules = [module for module in backbone.modules() if isinstance(module, ShowsAttention)]
    kinds = list(dict.fromkeys(module.attention_kind for module in modules))
    if CLASS in kinds or backbone.class_token_attends:
        kinds = [CLASS, *(kind for kind in kinds if kind != CLASS)]
    if backbone.rollout_kinds:
        kinds.append(ROLLOUT)
    return [*kinds, GRAD_CAM] if backbone.num_classes else kinds


def has_token_maps(model: nn.Module, kind: str) -> bool:
    """Whether each token of the image has a map of its own in this kind of a model's attention."""
    modules = (module for module in _backbone(model).modules() if isinstance(module, ShowsAttention))
    return any(module.attention_kind == kind and module.maps_per_token for module in modules)


def attention_maps(
    model: nn.Module,
    images: Tensor,
    kind: str | None = None,
    *,
    token: tuple[int, int] | None = None,
    blocks: Sequence[int] | None = None,
    target: int | Sequence[int] | None = None,
) -> list[AttentionMap]:
    """The places in images that the layers of a model look at, from the first layer to the last.

    The model runs as it is, with fused kernels; the weights are recomputed beside it from the queries and keys of the
    layers asked for. A map holds the shares of what one query gathers: they sum to one, less what does not lie on the
    map (what a class token gives itself, a token to digests, or to padding where that is not masked).

    - "class" (CaiT, XCiT, CabViT-P): of the class token to the patches.
    - "talking-heads" (CaiT), "self" (the released CabViT-P), "short-distance" and "long-distance" (CrossFormer),
      "inner-patch" (CAT): of a token to the others. "cross-block" (CabViT): also one map for each earlier digest.
    - "cross-patch" (CAT): of the patch that holds the token to the patches, in each channel.
    - "cross-covariance" (XCiT): of channels to channels, `b heads d d`, whose rows sum to one.
    - "rollout" (CaiT, the released CabViT-P): of the class token to the patches through all layers, the product of
      (A + I) / 2 with A the mean over the heads (Abnar and Zuidema, arXiv 2005.00928). Elsewhere tokens do not attend
      to tokens (XCiT), are merged (CAT, CrossFormer, CabViT-H) or convolved into digests (CabViT across blocks).
    - "grad-cam" (every classifier): the feature maps of a layer, by default the last that the logits depend on,
      weighted by the mean gradient of the target's logit, above zero (Selvaraju et al., arXiv 1610.02391). Not shares.

    Args:
        model: one of ours, a classifier or a pyramid, or a task that holds one.
        images: `b 3 H W`, normalised.
        kind: one of `attention_kinds(model)`; None: all of the family's own, without rollout and Grad-CAM: none
            where the family shows no attention.
        token: `(x, y)` in pixels of the images; None: the mean over all tokens, that is, how much each is looked at.
        blocks: numbers of layers among those of the kind, from 0, negative from the end; None: all, for Grad-CAM the
            last.
        target: class number, of all images or each, whose logit Grad-CAM explains; None: the most probable.

    Raises:
        UsageError: a model that is not ours, another kind than it has, or arguments that do not fit the images.
    """
    backbone = _backbone(model)
    kinds = attention_kinds(backbone)
    if kind is not None and kind not in kinds:
        raise unknown(f"attention of {_title(backbone)}", kind, kinds, hint=f"it has {', '.join(kinds)}")
    _check_images(backbone, images)
    _check_token(token, kind, backbone, images)
    if target is not None and kind != GRAD_CAM:
        raise UsageError("target is Grad-CAM's; leave it out, or ask for kind='grad-cam'")
    with _evaluating(backbone):
        if kind == GRAD_CAM:
            return _grad_cam(backbone, images, target, blocks)
        with torch.no_grad():
            if kind == ROLLOUT:
                if blocks is not None:
                    raise UsageError("rollout goes through all layers; leave out blocks")
                return [_rollout(backbone, images)]
            chosen = [kind] if kind else [each for each in kinds if each not in (ROLLOUT, GRAD_CAM)]
            return [layer for each in chosen for layer in _maps_of(backbone, images, each, token, blocks)]


@dataclass(frozen=True, slots=True)
class _Layer:
    name: str
    module: ShowsAttention
    stage: int
    block: int


def _layers(backbone: Backbone, kind: str) -> list[_Layer]:
    """Those of a kind, in the order in which they run."""
    layers = [
        _Layer(name, module, *backbone.layer_position(name))
        for name, module in backbone.named_modules()
        if isinstance(module, ShowsAttention)
        and (module.attention_kind == kind or (kind == CLASS and backbone.class_token_attends))
    ]
    return sorted(layers, key=lambda layer: (layer.stage, layer.block))


def _choose(layers: list[Any], blocks: Sequence[int], kind: str) -> list[Any]:
    wrong = [block for block in blocks if not -len(layers) <= block < len(layers)]
    if wrong or not blocks:
        raise UsageError(
            f"blocks={list(blocks)}: give numbers of the {len(layers)} layers of {kind} attention, "
            f"0 to {len(layers) - 1}, or negative ones from the end"
        )
    return [layers[block] for block in sorted({block % len(layers) for block in blocks})]


def _maps_of(
    backbone: Backbone, images: Tensor, kind: str, token: tuple[int, int] | None, blocks: Sequence[int] | None
) -> list[AttentionMap]:
    layers = _layers(backbone, kind)
    if blocks is not None:
        layers = _choose(layers, blocks, kind)
    maps: list[AttentionMap] = []

    def read(layer: _Layer, weights: AttentionWeights) -> None:
        place: dict[str, Any] = dict(name=layer.name, kind=kind, stage=layer.stage, block=layer.block)
        if weights.over == "channels":
            maps.append(AttentionMap(**place, maps=weights.weights.float(), over="channels"))
            return
        if kind == CLASS:
            weights = class_row(weights)
        number = None
        if token is not None and has_token_maps(backbone, kind):
            size = images.shape[-2], images.shape[-1]
            height, width = backbone.token_side(layer.stage, size, weights.queries.grid)
            number = _number(token, (height * weights.cell, width * weights.cell), weights.queries.grid)
        sizes = [keys.numbers.shape[1] for keys in weights.keys]
        parts = weights.weights.float().split(sizes, dim=-1)
        for i, (part, keys) in enumerate(zip(parts, weights.keys, strict=True)):
            gathered = _over_map(part, weights.queries, keys, number)
            maps.append(AttentionMap(**place, maps=gathered, source=i - 1 if i else None))

    with _reading(backbone, layers, read):
        backbone(images)
    return maps


def _number(token: tuple[int, int], sides: tuple[float, float], grid: Grid) -> int:
    """The token of a grid whose `sides` pixels high and wide part holds a pixel `(x, y)`; beyond the last, the last."""
    x, y = token
    row, column = (min(int(at // side), limit - 1) for at, side, limit in zip((y, x), sides, grid, strict=True))
    return row * grid[1] + column


def _over_map(weights: Tensor, queries: Places, keys: Places, number: int | None) -> Tensor:
    """`(b g) m q k` to `b m h w`: the row of one query, or the mean over all that have a place."""
    weights = weights.unflatten(0, (-1, len(queries.numbers)))  # b g m q k
    if number is None:
        placed = (queries.numbers >= 0).to(weights.dtype)
        rows = torch.einsum("bgmqk, gq -> bmgk", weights, placed) / placed.sum()
        numbers = keys.numbers
    else:
        group, query = (queries.numbers == number).nonzero()[0].tolist()
        rows = weights[:, group, :, query, None]  # b m 1 k
        numbers = keys.numbers[group]
    h, w = keys.grid
    flat = rows.new_zeros(*rows.shape[:2], h * w + 1)  # the last is for what has no place
    flat.index_add_(2, numbers.flatten() % (h * w + 1), rows.flatten(2))
    return flat[..., :-1].unflatten(-1, keys.grid)


@contextmanager
def _reading(
    backbone: Backbone, layers: Sequence[_Layer], read: Callable[[_Layer, AttentionWeights], None]
) -> Iterator[None]:
    """While it lasts, `read(layer, weights)` is called for every layer that the model runs."""
    with _watching_grids(backbone) as grid_of, ExitStack() as hooks:

        def see(layer: _Layer, module: nn.Module, inputs: Any) -> None:
            shape = inputs[0].shape  # b n c, or where sides change from layer to layer a map b h w c or b c h w
            sequences = len(shape) == 3 or backbone.stride is not None
            size = grid_of(layer.name) if sequences else shape[1:3] if backbone.channels_last else shape[2:]
            read(layer, layer.module.attention_weights((size[0], size[1]), *inputs))

        for layer in layers:
            module = backbone.get_submodule(layer.name)
            hooks.enter_context(module.register_forward_pre_hook(_here(partial(see, layer))))
        yield


def _here(hook: Callable[..., None]) -> Callable[..., None]:
    """`hook` for the calls of this thread alone: others, of a server say, may run the same model in the meantime."""
    here = get_ident()

    def seen(*call: Any) -> None:
        if get_ident() == here:
            hook(*call)

    return seen


@contextmanager
def _watching_grids(backbone: Backbone) -> Iterator[Callable[[str], Grid]]:
    """The grid of a layer's patches by its name, where it sees nothing but a sequence of them."""
    grids: dict[nn.Module | None, Grid] = {None: (0, 0)}

    def see(module: nn.Module, inputs: Any, output: Tensor) -> None:
        grids[module] = grids[None] = output.shape[-2], output.shape[-1]

    with ExitStack() as hooks:
        for module in backbone.grid_modules():
            hooks.enter_context(module.register_forward_hook(_here(see)))
        yield lambda layer: grids[backbone.grid_module(layer)]


def _rollout(backbone: Backbone, images: Tensor) -> AttentionMap:
    layers = [layer for kind in backbone.rollout_kinds for layer in _layers(backbone, kind)]
    steps: list[Tensor] = []
    grid: list[Grid] = []

    def read(layer: _Layer, weights: AttentionWeights) -> None:
        steps.append(weights.weights.float().mean(dim=1))  # b q k
        grid.append(weights.keys[0].grid)

    with _reading(backbone, layers, read):
        backbone(images)
    n = max(attention.shape[-1] for attention in steps)  # class token included
    row = images.new_zeros(len(images), 1, n, dtype=torch.float32)
    row[..., 0] = 1  # the class token
    for attention in reversed(steps):
        first, last = n - attention.shape[-1], attention.shape[-2]  # keys without, queries with the class token
        moved = row.clone()
        queries = slice(first, first + last)
        moved[..., queries] *= 0.5
        moved[..., first:] += 0.5 * row[..., queries] @ attention
        row = moved
    last_layer = layers[-1]
    maps = row[..., 1:].unflatten(-1, grid[0])
    return AttentionMap(name=last_layer.name, kind=ROLLOUT, stage=0, block=last_layer.block, maps=maps)


def _grad_cam(
    backbone: Backbone, images: Tensor, target: int | Sequence[int] | None, blocks: Sequence[int] | None
) -> list[AttentionMap]:
    names = _choose(backbone.cam_levels, [-1] if blocks is None else blocks, GRAD_CAM)
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = output[0] if isinstance(output, tuple) else output  # a CaB block gives its digest, too

    # Gradients are wanted even where parameters are frozen or the caller has switched them off.
    with torch.inference_mode(False), torch.enable_grad(), _watching_grids(backbone) as grid_of, ExitStack() as hooks:
        for name in names:
            hooks.enter_context(backbone.get_submodule(name).register_forward_hook(_here(partial(keep, name))))
        logits = backbone(images.clone().detach().requires_grad_())
        classes = _targets(target, logits)
        score = logits.gather(1, classes[:, None]).sum()
        gradients = torch.autograd.grad(score, [outputs[name] for name in names])
    cams = []
    for name, gradient in zip(names, gradients, strict=True):
        features, slopes = (_as_map(t.detach().float(), backbone, grid_of(name)) for t in (outputs[name], gradient))
        maps = (slopes.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True).relu()
        stage, block = backbone.level_position(name)
        cams.append(AttentionMap(name=name, kind=GRAD_CAM, stage=stage, block=block, maps=maps))
    return cams


def _as_map(x: Tensor, backbone: Backbone, grid: Grid) -> Tensor:
    """The output of a feature level as `b c h w`, whichever form the family gives it."""
    if x.ndim == 3:
        return to_map(x[:, x.shape[1] - grid[0] * grid[1] :], grid)
    return x.permute(0, 3, 1, 2) if backbone.channels_last else x


def _targets(target: int | Sequence[int] | None, logits: Tensor) -> Tensor:
    """A class number for each image."""
    if target is None:
        return logits.argmax(dim=1)
    classes = torch.as_tensor(target, device=logits.device).expand(len(logits)) if isinstance(target, int) else target
    classes = torch.as_tensor(classes, device=logits.device)
    if classes.shape != logits.shape[:1] or classes.min() < 0 or classes.max() >= logits.shape[1]:
        raise UsageError(
            f"target={target}: give a class number from 0 to {logits.shape[1] - 1}, or one for each of the "
            f"{len(logits)} images"
        )
    return classes


def _backbone(model: nn.Module) -> Backbone:
    """The model itself, or that of a task."""
    for candidate in (model, getattr(model, "model", None), getattr(model, "backbone", None)):
        if isinstance(candidate, Backbone):
            return candidate
    raise UsageError(
        f"{type(model).__name__} is not one of our models; give one of transept.create_model, or a task that holds one"
    )


def _title(backbone: Backbone) -> str:
    family = family_of(backbone)
    return backbone.pretrained_cfg.get("architecture") or (family.name if family else type(backbone).__name__)


def _check_images(backbone: Backbone, images: Tensor) -> None:
    channels = backbone.pretrained_cfg["input_size"][0]
    if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point() or not images.numel():
        kind = str(images.dtype).removeprefix("torch.")
        raise UsageError(
            f"images are {tuple(images.shape)} of {kind}; give normalised ones, b x {channels} x H x W of floats"
        )


def _check_token(token: tuple[int, int] | None, kind: str | None, backbone: Backbone, images: Tensor) -> None:
    if token is None:
        return
    if kind is not None and not has_token_maps(backbone, kind):
        raise UsageError(f"{kind} asks for no token; leave out token={token}")
    height, width = images.shape[-2:]
    if not (0 <= token[0] < width and 0 <= token[1] < height):
        raise UsageError(f"token={token} lies outside of the {width} x {height} pixels of the images; give (x, y)")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
