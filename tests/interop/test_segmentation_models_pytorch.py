"""segmentation_models_pytorch trains decoders on our encoders. That its UPerNet runs is tested in tests/weights."""

import pytest
import torch

import transept  # noqa: F401  registers the encoders with timm

smp = pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("cat_tiny", dict(embed_dim=32, num_heads=(1, 2, 4, 8)), marks=pytest.mark.slow),
        pytest.param("crossformer_tiny", dict(embed_dim=32, num_heads=(1, 2, 4, 8)), marks=pytest.mark.slow),
        ("cabvit_h_l1", dict(embed_dims=(16, 32, 32, 32), num_heads=(2, 2), depths=(1, 1, 1, 1), pyramid_dims=None)),
    ],
)
def test_learns_on_our_encoder(name: str, options: dict):
    model = smp.FPN(f"tu-{name}", encoder_weights=None, classes=2, decoder_dropout=0.0, **options)
    assert model.encoder.out_channels[-4:] == model.encoder.model.feature_info.channels()
    images = torch.randn(2, 3, 64, 96)
    masks = torch.tensor([[[[0, 1, 0], [1, 1, 0]]], [[[1, 0, 1], [0, 0, 1]]]])
    masks = masks.repeat_interleave(32, 2).repeat_interleave(32, 3)  # squares that maps of these strides can show
    images[:, :1] += 3 * masks
    loss_of = smp.losses.DiceLoss("multiclass")
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4)
    losses = []
    for _ in range(6):
        loss = loss_of(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
    assert all(p.grad is not None for p in model.encoder.model.patch_embed.parameters())
    model.eval()
    with torch.no_grad():
        again = smp.FPN(f"tu-{name}", encoder_weights=None, classes=2, decoder_dropout=0.0, **options).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(images), model(images))
