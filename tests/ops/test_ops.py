"""Reshapes out and back, and resizing."""

import pytest
import torch

from transept.layers.pyramid import Shrink, scale_modules
from transept.ops.attention import attend
from transept.ops.interpolation import resize_map, resize_position_embedding, resize_rows
from transept.ops.tokens import merge_heads, split_heads, to_map, to_tokens


def test_heads_out_and_back_without_a_copy():
    x = torch.randn(2, 5, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 5, 4)
    assert torch.equal(heads[1, 2, 4], x[1, 4, 8:12])
    assert heads.data_ptr() == x.data_ptr()
    assert torch.equal(merge_heads(heads), x)


def test_map_out_and_back_without_a_copy():
    x = torch.randn(2, 6, 4)
    grid = to_map(x, (2, 3))
    assert torch.equal(grid[1, :, 1, 2], x[1, 5])
    assert grid.is_contiguous(memory_format=torch.channels_last)
    assert grid.data_ptr() == x.data_ptr() == to_tokens(grid).data_ptr()
    assert torch.equal(to_tokens(grid), x)


def test_attend_is_softmax_attention():
    q, k, v = torch.randn(2, 1, 12), torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    expected = torch.empty(2, 1, 12)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(dim=-1)
        expected[..., part] = weights @ v[..., part]
    assert torch.allclose(attend(q, k, v, 3), expected, atol=1e-6)


def test_position_embedding_is_unchanged_at_its_own_grid_and_smooth_at_others():
    table = torch.linspace(0, 1, 5)[None, :, None, None].expand(1, 5, 7, 2).flatten(1, 2)  # grows down the rows
    assert resize_position_embedding(table, (5, 7), (5, 7)) is table
    resized = resize_position_embedding(table, (5, 7), (10, 3)).unflatten(1, (10, 3))
    assert resized.shape == (1, 10, 3, 2)
    assert (resized.diff(dim=1) > -0.02).all()
    assert torch.allclose(resized[:, :, 0], resized[:, :, 2], atol=1e-6)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_scale_modules_reach_the_four_strides(patch_size: int):
    x = torch.randn(1, 6, 96 // patch_size, 64 // patch_size)
    shapes = [tuple(module.eval()(x).shape[-2:]) for module in scale_modules(6, patch_size)]
    assert shapes == [(24, 16), (12, 8), (6, 4), (3, 2)]


def test_shrink_equals_max_pool_where_that_works():
    x = torch.randn(1, 2, 7, 5)
    assert torch.equal(Shrink(2)(x), torch.nn.MaxPool2d(2)(x))
    assert Shrink(4)(x[..., :1, :3]).shape[-2:] == (1, 1)


def test_unknown_stride_is_refused():
    with pytest.raises(ValueError, match="patch_size=12"):
        scale_modules(6, 12)


@pytest.mark.parametrize("size", [(40, 33), (7, 5), (16, 31), (11, 9)])
def test_rows_of_a_resized_map(size: tuple[int, int]):
    x = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(0))
    whole = resize_map(x, size)
    for start in range(0, size[0], 4):
        stop = min(start + 4, size[0])
        torch.testing.assert_close(resize_rows(x, size, start, stop), whole[..., start:stop, :])
