"""Files that other code bases write, small: `python tests/weights/ports/make.py WRITER` where that writer is installed.

    birder     birder, torch
    paddle     paddlepaddle, ppim
    keras      keras, zeromodels, torch (KERAS_BACKEND=torch)
    mindspore  mindspore, mindcv

Each writes its own models, filled by `values`, with its own function, and notes the logits that it gets; `ports.json`
keeps these with the versions. The files are compressed, since an archive of small tensors is mostly padding.
"""

import importlib.metadata
import json
import lzma
import sys
import tempfile
import types
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CLASSES = 5
CAIT = dict(embed_dim=16, depth=2, num_heads=2)
CROSSFORMER = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))


def values(name: str, shape) -> np.ndarray:
    """Four levels, so that they compress well; scales around 1, variances positive."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).randint(-2, 2, size=tuple(shape)) / 2
    if name.endswith(("running_var", "moving_variance", "_variance")):
        return (1.5 + draw / 2).astype(np.float32)
    scale = "gamma" in name or "temperature" in name or (len(shape) == 1 and name.endswith("weight"))
    if len(shape) < 2 or scale:
        return (scale + draw / 8).astype(np.float32)
    return (draw / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def image(size: int) -> np.ndarray:
    return np.random.RandomState(7).standard_normal((2, 3, size, size)).astype(np.float32)


def keep(path: Path, writer: str, packages: tuple[str, ...], model: str, options: dict, logits) -> None:
    """Compress the file and note what it is; `options` are those of our model."""
    record = HERE / "ports.json"
    notes = json.loads(record.read_text()) if record.exists() else {}
    (HERE / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
    notes[path.name] = {
        "writer": writer,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "model": model,
        "options": options,
        "logits": [[float(f"{value:.8g}") for value in row] for row in np.asarray(logits)],
    }
    record.write_text(json.dumps(dict(sorted(notes.items())), indent=1) + "\n")


def birder(folder: Path) -> None:
    import torch
    from birder.common import fs_ops
    from birder.conf import settings
    from birder.data.transforms.classification import get_rgb_stats
    from birder.model_registry import registry

    settings.MODELS_DIR = folder
    attention = dict(drop_path_rate=0.0)
    cross = dict(embed_dim=[16, 32], depths=[[1, 1, 0]] * 3, num_heads=[2, 2], mlp_ratio=[3.0, 3.0, 1.0])
    for theirs, config, size, ours, options in (
        ("cait_xxs24", CAIT | attention | dict(init_values=1e-5), 32, "cait_xxs24_224", CAIT),
        (
            "xcit_nano12_p16",
            dict(patch_size=16, embed_dim=8, depth=12, num_heads=2, eta=1.0, tokens_norm=False) | attention,
            48,
            "xcit_nano_12_p16_224",
            dict(embed_dim=8, num_heads=2),
        ),
        (
            "crossformer_s",
            CROSSFORMER | attention,
            64,
            "crossformer_small",
            CROSSFORMER | dict(group_sizes=(2, 2, 2, 2)),
        ),
        (
            "crossvit_9d",
            cross | attention | dict(multi_conv=True),
            48,
            "crossvit_9_dagger_240",
            dict(embed_dims=(16, 32), depth=1, num_heads=2),
        ),
    ):
        net = registry.net_factory(theirs, CLASSES, config=config, size=(size, size)).eval()
        state = net.state_dict()
        tables = ("biases", "relative_position_index", "num_batches_tracked")
        filled = {
            name: tensor if name.endswith(tables) else torch.from_numpy(values(name, tensor.shape))
            for name, tensor in state.items()
        }
        net.load_state_dict(filled)
        signature = {"inputs": [{"data_shape": [0, 3, size, size]}], "outputs": [{"data_shape": [0, CLASSES]}]}
        classes = {str(i): i for i in range(CLASSES)}
        fs_ops.checkpoint_model(theirs, 1, net, signature, classes, get_rgb_stats("birder"), None, None, None, None)
        with torch.inference_mode():
            logits = net(torch.from_numpy(image(size))).numpy()
        file = (folder / f"{theirs}_1.pt").rename(folder / f"birder_{theirs}.pt")
        keep(file, "birder", ("birder", "torch"), ours, options | dict(img_size=size), logits)


def paddle(folder: Path) -> None:
    import paddle
    from ppim.models.cait import CaiT

    net = CaiT(img_size=32, patch_size=16, class_dim=CLASSES, **CAIT)
    net.eval()
    for name, parameter in net.state_dict().items():
        parameter.set_value(values(name, parameter.shape))
    logits = net(paddle.to_tensor(image(32))).numpy()
    options = CAIT | dict(img_size=32)
    file = folder / "ppim_cait.pdparams"
    paddle.save(net.state_dict(), str(file))
    keep(file, "ppim", ("paddlepaddle", "ppim"), "cait_xxs24_224", options, logits)
    # PaddleViT is no package. Its CaiT has one other name.
    state = {
        name.replace("patch_embed.proj", "patch_embed.patch_embed"): value for name, value in net.state_dict().items()
    }
    file = folder / "paddlevit_cait.pdparams"
    paddle.save(state, str(file))
    keep(file, "PaddleViT", ("paddlepaddle",), "cait_xxs24_224", options, logits)


def keras(folder: Path) -> None:
    import keras
    from zeromodels.models.cait import CaiTImageClassify

    net = CaiTImageClassify(patch_size=16, image_size=32, num_classes=CLASSES, **CAIT)
    for weight in net.weights:
        place, _, leaf = weight.path.rpartition("/")
        leaf = {"kernel": "weight", "gamma": "weight", "beta": "bias"}.get(leaf, leaf)
        weight.assign(values(f"{place}.{'gamma' if 'layerscale' in place else leaf}", weight.shape))
    logits = keras.ops.convert_to_numpy(net(image(32).transpose(0, 2, 3, 1), training=False))
    file = folder / "keras_cait.weights.h5"
    net.save_weights(file)
    keep(file, "Keras", ("keras", "zeromodels"), "cait_xxs24_224", CAIT | dict(img_size=32), logits)


def mindspore(folder: Path) -> None:
    import mindspore

    # The package imports its data loaders and all they ask for; only its models are needed.
    place = Path(importlib.metadata.distribution("mindcv").locate_file("mindcv"))
    for name, path in (("mindcv", place), ("mindcv.models", place / "models")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    from mindcv.models.crossvit import VisionTransformer
    from mindcv.models.xcit import XCiT

    cross = VisionTransformer(
        img_size=[48, 48],
        patch_size=[12, 16],
        embed_dim=[16, 32],
        depth=[[1, 1, 0]] * 3,
        num_heads=[2, 2],
        mlp_ratio=[3, 3, 1],
        qkv_bias=True,
        num_classes=CLASSES,
    )
    xcit = XCiT(
        img_size=48, patch_size=16, num_classes=CLASSES, embed_dim=8, depth=2, num_heads=2, eta=1.0, tokens_norm=True
    )
    for name, net, ours, options in (
        ("crossvit", cross, "crossvit_9_240", dict(embed_dims=(16, 32), depth=1, num_heads=2)),
        ("xcit", xcit, "xcit_tiny_12_p16_224", dict(embed_dim=8, depth=2, num_heads=2)),
    ):
        net.set_train(False)
        for parameter in net.get_parameters():
            leaf = parameter.name.replace(".gamma", ".weight").replace(".beta", ".bias")
            parameter.set_data(mindspore.Tensor(values(leaf, parameter.shape)))
        logits = net(mindspore.Tensor(image(48))).asnumpy()
        file = folder / f"mindcv_{name}.ckpt"
        mindspore.save_checkpoint(net, str(file))
        keep(file, "MindCV", ("mindspore", "mindcv"), ours, options | dict(img_size=48), logits)


if __name__ == "__main__":
    writers = {"birder": birder, "paddle": paddle, "keras": keras, "mindspore": mindspore}
    with tempfile.TemporaryDirectory() as folder:
        writers[sys.argv[1]](Path(folder))
