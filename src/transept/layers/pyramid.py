"""A four-level pyramid from a transformer whose tokens keep one stride."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d


def scale_modules(dim: int, patch_size: int) -> list[nn.Module]:
    """The four modules that bring a map of stride `patch_size` (4, 8 or 16) to strides 4, 8, 16 and 32.

    XCiT's detection and segmentation models (paper, Section 4.3) double a map with a transposed
    convolution and halve it with a max-pool. The member names are those of their checkpoints.
    """

    def double() -> nn.Module:
        return nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)

    quadruple = nn.Sequential(double(), nn.BatchNorm2d(dim), nn.GELU(), double())
    match patch_size:
        case 16:
            return [quadruple, nn.Sequential(double()), nn.Identity(), Shrink(2)]
        case 8:
            return [nn.Sequential(double()), nn.Identity(), Shrink(2), Shrink(4)]
        case 4:
            return [nn.Identity(), Shrink(2), Shrink(4), Shrink(8)]
        case _:
            raise ValueError(f"patch_size={patch_size} has no pyramid of strides 4 to 32; use 4, 8 or 16")


class Shrink(nn.Module):
    """The max-pool of XCiT's dense models, but a side shorter than `factor` gives 1 and not an error."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "b c _h _w"]) -> Float[Tensor, "b c _h _w"]:
        h, w = x.shape[-2:]
        return max_pool2d(x, (min(self.factor, h), min(self.factor, w)))

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
