"""Convolution, norm and activation under the names that released dense models have for them."""

from typing import Literal

from torch import nn

ConvNorm = Literal["batch", "group"]


class ConvNormAct(nn.Sequential):
    """A convolution that keeps the map's size (over its stride), then a norm, then ReLU: `b c h w -> b d h w`.

    Members are `conv` and, where there is one, `bn` (BatchNorm) or `gn` (GroupNorm of 32 groups). The convolution
    has a bias where there is no norm. Weights are drawn for ReLU (Kaiming normal, by the outputs).

    torchvision's and timm's units name the members otherwise; timm's holds the activation in the norm, and loses it
    in `torch.nn.SyncBatchNorm.convert_sync_batchnorm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        norm: ConvNorm | None = "batch",
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=norm is None
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        match norm:
            case "batch":
                self.bn = nn.BatchNorm2d(out_channels)
            case "group":
                self.gn = nn.GroupNorm(32, out_channels)
        if act:
            self.act = nn.ReLU(inplace=True)
