"""Files that other code bases write, small: `python tests/weights/ports/make.py WRITER` where that writer is installed.

    birder     birder, torch
    paddle     paddlepaddle, ppim
    keras      keras, zeromodels, torch (KERAS_BACKEND=torch)
    mindspore  mindspore, mindcv
    easycv     pai-easycv with what it imports, timm 0.5.4, mmcv 1.7.2, setuptools < 81
    vissl      vissl, classy-vision, fairscale and what they import, setuptools < 81
    robust     robustbench, timm
    mmpretrain mmpretrain, mmcv-lite, mmengine
    lucidrains vit-pytorch

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


def digits(logits) -> list[list[float]]:
    return [[float(f"{value:.8g}") for value in row] for row in np.asarray(logits)]


def keep(path: Path, writer: str, packages: tuple[str, ...], model: str, options: dict, logits, **more) -> None:
    """Compress the file and note what it is; `options` are those of our model.

    `more`: the names it has, where another's (`dialect`); the logits of another network (`teacher`, `student`).
    """
    record = HERE / "ports.json"
    notes = json.loads(record.read_text()) if record.exists() else {}
    (HERE / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
    notes[path.name] = {
        "writer": writer,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "model": model,
        "options": options,
        "logits": digits(logits),
    } | more
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


XCIT = dict(embed_dim=8, depth=2, num_heads=2)
TINY, NANO = "xcit_tiny_12_p16_224", "xcit_nano_12_p16_224"  # with and without the norm of all tokens


def fill(net) -> None:
    """The values of a module of PyTorch, but for counters and for what is computed or given."""
    import torch

    for name, tensor in net.state_dict().items():
        if not name.endswith(("num_batches_tracked", "normalize.mean", "normalize.std")):
            tensor.copy_(torch.from_numpy(values(name, tensor.shape)))
    net.eval()


def easycv(folder: Path) -> None:
    import torch

    class Compiled(types.ModuleType):
        """Where MMCV looks for its compiled operations, which none of these models calls."""

        def __getattr__(self, name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            return print

    sys.modules["mmcv._ext"] = Compiled("mmcv._ext")
    from easycv.models import builder
    from easycv.models.backbones import pytorch_image_models_wrapper as wrapper
    from easycv.models.backbones.xcit_transformer import XCiT
    from mmcv.runner import save_checkpoint

    # Its own table of XCiT has no small one.
    wrapper._MODEL_MAP["xcit_small_12_p16"] = lambda **options: XCiT(
        patch_size=16, eta=1.0, tokens_norm=True, **options
    )
    for file, classes, head in (
        ("easycv_xcit.pth", CLASSES, dict(with_fc=False)),
        ("easycv_xcit_fc.pth", 0, dict(with_fc=True, in_channels=8, num_classes=CLASSES)),
    ):
        backbone = dict(type="PytorchImageModelWrapper", model_name="xcit_small_12_p16", num_classes=classes, **XCIT)
        net = builder.build_model(
            dict(type="Classification", backbone=backbone, head=dict(type="ClsHead", **head), pretrained=False)
        )
        fill(net)
        with torch.no_grad():
            (logits,) = net.head_0(net.backbone(torch.from_numpy(image(48))))
        save_checkpoint(net, str(folder / file), meta=dict(epoch=1))
        packages = ("pai-easycv", "mmcv", "timm")
        options = XCIT | dict(img_size=48)
        keep(folder / file, "EasyCV", packages, TINY, options, logits.numpy(), dialect="official")
    net = builder.build_model(
        dict(
            type="DINO",
            backbone=backbone,
            neck=dict(type="DINONeck", in_dim=8, out_dim=8, hidden_dim=8, bottleneck_dim=8),
            pretrained=False,
            config=dict(use_bn_in_head=False, norm_last_layer=True, drop_path_rate=0.0),
        )
    )
    fill(net)
    with torch.no_grad():
        net.teacher.backbone.model.norm.bias += 1
        better, features = (n.backbone(torch.from_numpy(image(48)))[0].flatten(1) for n in (net.teacher, net.student))
    file = folder / "easycv_dino.pth"
    save_checkpoint(net, str(file), meta=dict(epoch=1))
    options = XCIT | dict(img_size=48, num_classes=0)
    keep(file, "EasyCV", packages, TINY, options, better.numpy(), dialect="official", student=digits(features))


def vissl(folder: Path) -> None:
    import torch
    import torchvision.datasets.kinetics as kinetics

    kinetics.Kinetics400 = kinetics.Kinetics  # its former name, which Classy Vision imports
    from vissl.config import AttrDict
    from vissl.losses.dino_loss import DINOLoss
    from vissl.models import build_model
    from vissl.utils.checkpoint import CheckpointWriter
    from vissl.utils.hydra_config import compose_hydra_configuration, convert_to_attrdict

    config = compose_hydra_configuration(
        [
            "config=pretrain/dino/dino_16gpus_xcit_small_12_p16",
            "config.MODEL.TRUNK.XCIT.HIDDEN_DIM=8",
            "config.MODEL.TRUNK.XCIT.NUM_LAYERS=2",
            "config.MODEL.TRUNK.XCIT.NUM_HEADS=2",
        ]
    )
    _, config = convert_to_attrdict(config)
    ((_, head),) = config.MODEL.HEAD.PARAMS
    head.update(dims=[8, 16, 16, 8], num_clusters=[16])
    student, teacher = (build_model(config.MODEL, config.OPTIMIZER) for _ in range(2))
    fill(student)
    fill(teacher)
    with torch.no_grad():
        teacher.trunk.norm.bias += 1
    loss = DINOLoss(AttrDict(config.LOSS.dino_loss | dict(output_dim=16)))
    loss.momentum_teacher = teacher
    content = {
        "phase_idx": 250,
        "loss": loss.state_dict(),
        "classy_state_dict": {"base_model": student.get_classy_state(), "loss": loss.get_classy_state()},
    }
    writer = CheckpointWriter(str(folder), False, "phase", 250, "disk")
    writer.save_consolidated_checkpoint(content)
    with torch.no_grad():
        features, better = (network.trunk(torch.from_numpy(image(48)))[0].numpy() for network in (student, teacher))
    file = (folder / writer.get_checkpoint_name()).rename(folder / "vissl_xcit.torch")
    options = XCIT | dict(img_size=48, num_classes=0)
    packages = ("vissl", "classy-vision", "torch")
    keep(file, "VISSL", packages, TINY, options, features, dialect="official", teacher=digits(better))


def robust(folder: Path) -> None:
    import torch
    from timm.models.xcit import Xcit

    # The package imports its attacks, too.
    place = Path(importlib.metadata.distribution("robustbench").locate_file("robustbench"))
    for name in ("robustbench", "robustbench.model_zoo", "robustbench.model_zoo.architectures"):
        package = types.ModuleType(name)
        package.__path__ = [str(place.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from robustbench.model_zoo.architectures import xcit

    net = Xcit(patch_size=16, eta=1.0, tokens_norm=True, num_classes=CLASSES, **XCIT)
    net.default_cfg = xcit.default_cfgs["debenedetti2022light_xcit_s12_cifar100_linf"]
    net = xcit.normalize_timm_model(xcit.adapt_model_patches(net, 4))
    fill(net)
    picture = torch.from_numpy(image(32))
    with torch.no_grad():
        logits = net(picture).numpy()
    file = folder / "robustbench_xcit.pth.tar"
    torch.save({"arch": "xcit_small_12_p4_32", "epoch": 1, "state_dict": net.state_dict()}, file)
    options = XCIT | dict(img_size=32, patch_size=4, stem_depth=4)
    keep(file, "RobustBench", ("robustbench", "timm"), TINY, options, logits, dialect="timm")


def mmpretrain(folder: Path) -> None:
    import torch
    from mmengine.runner.checkpoint import save_checkpoint
    from mmpretrain.models import build_classifier

    for patch, norm in (16, True), (8, False):
        backbone = dict(
            type="XCiT",
            patch_size=patch,
            embed_dims=8,
            depth=2,
            num_heads=2,
            layer_scale_init_value=1.0,
            tokens_norm=norm,
        )
        head = dict(type="LinearClsHead", num_classes=CLASSES, in_channels=8, loss=dict(type="CrossEntropyLoss"))
        net = build_classifier(dict(type="ImageClassifier", backbone=backbone, head=head))
        fill(net)
        with torch.no_grad():
            logits = net(torch.from_numpy(image(48)), mode="tensor").numpy()
        file = folder / f"mmpretrain_xcit_p{patch}.pth"
        save_checkpoint({"meta": {}, "state_dict": net.state_dict()}, str(file))
        ours = TINY if norm else NANO.replace("p16", "p8")
        packages = ("mmpretrain", "mmengine", "mmcv-lite")
        keep(file, "MMPretrain", packages, ours, XCIT | dict(img_size=48), logits)


def lucidrains(folder: Path) -> None:
    """Another mathematics (norms around the patches' projection, no bias of queries, ...), which is to be refused."""
    import torch
    from vit_pytorch.cait import CaiT
    from vit_pytorch.cross_vit import CrossViT
    from vit_pytorch.crossformer import CrossFormer

    common = dict(image_size=32, num_classes=CLASSES)
    cait = CaiT(patch_size=16, dim=16, depth=1, cls_depth=1, heads=2, dim_head=8, mlp_dim=32, **common)
    cross = CrossViT(
        image_size=48,
        num_classes=CLASSES,
        sm_dim=16,
        lg_dim=16,
        depth=1,
        lg_enc_depth=1,
        cross_attn_depth=1,
        **{f"{part}_{what}": 4 for part in ("sm_enc", "lg_enc", "cross_attn") for what in ("heads", "dim_head")},
        sm_enc_mlp_dim=16,
        lg_enc_mlp_dim=16,
    )
    former = CrossFormer(
        dim=(32,) * 4,
        depth=(1, 0, 0, 0),
        global_window_size=2,
        local_window_size=2,
        cross_embed_kernel_sizes=((4,), (2,), (2,), (2,)),
        num_classes=CLASSES,
    )
    for name, net in ("cait", cait), ("crossvit", cross), ("crossformer", former):
        fill(net)
        torch.save(net.state_dict(), folder / "file")
        (HERE / f"lucidrains_{name}.pt.xz").write_bytes(lzma.compress((folder / "file").read_bytes()))


if __name__ == "__main__":
    writers = {"birder": birder, "paddle": paddle, "keras": keras, "mindspore": mindspore, "easycv": easycv}
    writers |= {"vissl": vissl, "robust": robust, "mmpretrain": mmpretrain, "lucidrains": lucidrains}
    with tempfile.TemporaryDirectory() as folder:
        writers[sys.argv[1]](Path(folder))
