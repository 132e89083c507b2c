"""One model of each kind of network, with few blocks and channels: built in a moment, and run in another."""

from typing import Any

import transept
from tests.contract import lively

SMALL: dict[str, dict[str, Any]] = {
    "cabvit_h_l1": dict(depths=(1, 1, 3, 2), embed_dims=(8, 16, 32, 48), num_heads=(2, 3), pyramid_dims=None),
    "cabvit_p_l0": dict(depth=4, embed_dim=24),
    "cabvit_p_l0_cross": dict(depth=4, embed_dim=24),
    "cait_xxs24_224": dict(depth=2, embed_dim=48),
    "cat_tiny": dict(depths=(1, 1, 2, 1), embed_dim=16, num_heads=(1, 2, 4, 8), pad=True),
    "crossformer_tiny": dict(depths=(2, 2, 2, 1), embed_dim=16, num_heads=(1, 2, 4, 8), pad=True),
    "xcit_nano_12_p8_224": dict(depth=3, embed_dim=32),
}
NAMES = tuple(SMALL)


def build(name: str, features_only: bool = False) -> Any:
    """For images of 64 pixels and 7 classes, or a pyramid."""
    options = dict(features_only=True) if features_only else dict(num_classes=7)
    return lively(transept.create_model(name, img_size=64, **SMALL[name], **options)).eval()
