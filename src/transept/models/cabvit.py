"""CabViT (Zhang et al., "CabViT: Cross Attention among Blocks for Vision Transformer", arXiv 2211.07198).

Published again as FcaFormer (ICCV 2023): the same networks under the same parameter names.

Cross attention among blocks   cabvit_block.CrossAttentionAmongBlocks   tokens attend to tokens and earlier digests
Token merge and enhancement    cabvit_block.CabBlock   a long-stride convolution makes the digest, a short one mixes
Hybrid model, CabViT-H         cabvit_h.CabViTH        two convolutional stages, two attentive ones
Plain model, CabViT-P          cabvit_p.CabViTP        DeiT's outline, with a class token
Variants                       VARIANTS                those of both models

Module names are those of the official code, so its files load as they are.

`cabvit_p_l0` is what the official code computes: plain DeiT-Ti. Its blocks are told their depth and ignore it, so
nothing crosses blocks, against the paper. `cabvit_p_l0_cross` is the model that the paper describes, in **our design**:
the CaB block of CabViT-H on the 14 x 14 patches, 5.87 M parameters (5.9 M published). The class token is a query and a
key like any other, without position bias; convolutions leave it out. In the last block only what it reads is left:
no local convolution, no biases among patches. No weights exist for it.

`features_only=True` runs the attentive stages of CabViT-H in windows of the native grid (14 and 7 at 224 pixels), as
FcaFormer's dense models do. Block by block the map is padded with zeros to whole windows, in turn at the left and top
and at the right and bottom. Where there is padding, a window's digests thus come from shifted places, as trained.

Departures from the official code, all without effect on the outputs of official weights:
- any image size: grids are read from the maps, and biases and scaling factors learned on the native grid are resized;
  officially sides are fixed at construction, and multiples of 32;
- the digests' queries, computed there and thrown away, are not computed;
- `conv_block="cf"`: the scales of its two branches are parameters; officially they are never registered, hence neither
  saved, nor moved to the GPU, nor trained. A file without them is given their initial value, which is what it ran with.
  That file's and the "mb" block's names are ours: no checkpoint of either was published;
- the unused constructor argument `head_init_scale` is gone.

Kept, since the weights were trained so: two LayerNorms before each MLP of a CaB block; no residual around the local
convolution; scaling factors before a LayerNorm, which leaves them little but their sign.
"""

from typing import Any

from transept.models import cabvit_h, cabvit_p
from transept.models.backbone import Backbone, Family
from transept.models.cabvit_h import CabViTH, CabViTHConfig, CabViTHPyramid
from transept.models.cabvit_p import CabViTP, CabViTPConfig, CabViTPPyramid

VARIANTS: dict[str, CabViTHConfig | CabViTPConfig] = {**cabvit_h.VARIANTS, **cabvit_p.VARIANTS}


def _classifier(config: CabViTHConfig | CabViTPConfig, **arguments: Any) -> Backbone:
    return CabViTH(config, **arguments) if isinstance(config, CabViTHConfig) else CabViTP(config, **arguments)


def _pyramid(config: CabViTHConfig | CabViTPConfig, **arguments: Any) -> Backbone:
    if isinstance(config, CabViTHConfig):
        return CabViTHPyramid(config, **arguments)
    return CabViTPPyramid(config, **arguments)


FAMILY = Family(
    name="CabViT",
    paper="Zhang et al., CabViT: Cross Attention among Blocks for Vision Transformer, arXiv 2211.07198",
    variants=VARIANTS,
    classifier=_classifier,
    pyramid=_pyramid,
    notes={
        "cabvit_p_l0_cross": "a design of ours: the paper's attention across blocks, which the released CabViT-P lacks"
    },
)
