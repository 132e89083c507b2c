"""The sum of a residual stream and a branch."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None, drop_path: nn.Module | None = None) -> Tensor:
    """`x + drop_path(scale * branch)`, with one pass over the tensors where nothing is dropped.

    `scale` is LayerScale's, one number per channel of the last axis; None where it is part of the branch's weights.
    """
    if isinstance(drop_path, DropPath) and drop_path.training:
        return x + drop_path(branch if scale is None else scale * branch)
    return x + branch if scale is None else torch.addcmul(x, scale, branch)
