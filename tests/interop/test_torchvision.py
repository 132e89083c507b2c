"""torchvision's tools, and the limit of one of them.

`create_feature_extractor` traces with symbols that have no size, and our models read sizes: of groups, paddings and
resized positions. Inside a larger model they can be a leaf; alone, `features_only=True` and `forward_intermediates`
give what it would.
"""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.fx.proxy import TraceError
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork

from tests.helpers import NAMES, build

IMAGE = torch.randn(2, 3, 75, 53, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_feature_extractor_with_our_model_as_a_leaf(name: str):
    model = build(name)
    with pytest.raises(TraceError):
        create_feature_extractor(model, [model.feature_info[-1]["module"]])
    system = nn.Sequential(OrderedDict(ours=model, act=nn.ReLU(), out=nn.Linear(7, 2))).eval()
    extractor = create_feature_extractor(
        system, {"ours": "logits", "out": "end"}, tracer_kwargs={"leaf_modules": [type(model)]}
    )
    with torch.no_grad():
        found = extractor(IMAGE)
        assert torch.equal(found["logits"], model(IMAGE))
        assert torch.equal(found["end"], system(IMAGE))


@pytest.mark.parametrize("name", NAMES)
def test_feature_pyramid_network(name: str):
    backbone = build(name, features_only=True)
    neck = FeaturePyramidNetwork(backbone.feature_info.channels(), 8)
    maps = OrderedDict(zip("0123", backbone(IMAGE), strict=True))
    levels = neck(maps)
    assert [level.shape for level in levels.values()] == [(2, 8, *m.shape[2:]) for m in maps.values()]
    sum(level.mean() for level in levels.values()).backward()
    assert all(p.grad is not None for p in backbone.patch_embed.parameters())
