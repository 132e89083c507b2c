#!/usr/bin/env bash
# CrossFormer in vit-pytorch reads the dynamic position bias of other offsets than those between its tokens.
#
# vit-pytorch 1.26.14: for groups of w x w tokens the bias network answers for (2w + 1) x (2w + 1) offsets, from -w to w, and
# the table that says where to read the answers counts in rows of 2w - 1. So a token's own offset, (0, 0), gets the answer
# for another one, with w = 7 that of (-2, 2), and none of the 169 offsets gets its own. The paper and its code ask for
# (2w - 1) x (2w - 1) offsets, which the table fits. A model trained so works with what it learnt, but offsets that lie far
# apart are answered as neighbours: (-5, -6), with w = 7, right beside (-6, 6).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet uv
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" vit-pytorch==1.26.14 torch==2.15.0 numpy
"$folder/env/bin/python" - <<'PYTHON' 2>/dev/null
from importlib.metadata import version

import torch
from vit_pytorch.crossformer import Attention

width, channels = 7, 32
layer = Attention(channels, attn_type="short", window_size=width, dim_head=channels)


class Asked(torch.nn.Module):
    """In the place of the bias network: the offsets that it is asked for, as they come."""

    def forward(self, offsets):
        self.offsets = offsets
        return offsets.new_zeros(len(offsets))


layer.dpb = Asked()
layer(torch.zeros(1, channels, width, width))
got = layer.dpb.offsets[layer.rel_pos_indices].long()  # queries, keys, (rows, columns)
places = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(width), indexing="ij"), -1).reshape(-1, 2)
true = places[:, None] - places[None]
pairs = {(tuple(a), tuple(b)) for a, b in zip(true.reshape(-1, 2).tolist(), got.reshape(-1, 2).tolist())}
right = sorted(a for a, b in pairs if a == b)
print("vit-pytorch", version("vit-pytorch"), "asked for", len(layer.dpb.offsets), "offsets; there are", len(pairs))
print("(0, 0) reads", dict(pairs)[0, 0], "-", "right are", right)
assert len(layer.dpb.offsets) == (2 * width + 1) ** 2
assert len(pairs) == (2 * width - 1) ** 2
assert dict(pairs)[0, 0] == (-2, 2)
assert dict(pairs)[-6, 6] == (-7, 5)
assert dict(pairs)[-5, -6] == (-7, 6)
assert not right
PYTHON
