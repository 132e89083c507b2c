"""What others published: ports to further frameworks, mirrors, and models that they trained themselves.

Most of these files were never opened here: names and preprocessing that their code bases do not state are inferred, and
say so. How a port computes otherwise than the official model stands in the note, and in a warning where it is loaded.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from transept.data.classification.transforms import Preprocessing
from transept.weights.catalogue import ports_tables as tables
from transept.weights.catalogue.checkpoint import FB, XCIT_RUNS, Checkpoint, Page, cropped, direct, whole
from transept.weights.convert import crossvit as crossvit_names
from transept.weights.convert import xcit as xcit_names

_EASYCV = "pai-vision-data-hz.oss-cn-zhangjiakou.aliyuncs.com/EasyCV/modelzoo"
_UNSEEN = "contents not checked"
_BIRDS = "another number of classes: birds; mean and std are birder's default, those of the file lie in its rgb_stats"
_CIFAR = {  # mean and std
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
_UNIT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # pixels in 0..1, as they are
_HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_ROBUST_WIDTHS = {"s": "small_12", "m": "medium_24", "l": "large_24"}
"""The model of the same width. All robust models have 12 blocks."""


def xcit() -> Iterator[Checkpoint]:
    for size, runs in tables.XCIT_PADDLEVIT.items():
        for (img_size, _, tag), (top1, top5) in zip(XCIT_RUNS, runs, strict=True):
            name = f"xcit_{size}_{img_size}"
            doubtful = size == "medium_24_p16" and "dist" in tag
            yield Checkpoint(
                model=name,
                tag=f"paddlevit_{tag}",
                origin="PaddleViT",
                pages=(Page(url=tables.XCIT_PADDLEVIT_FOLDER, site="Google Drive"),),
                file=f"{name}.paddlevit_{tag}.pdparams",
                scores={"top1": top1, "top5": top5},
                source="PaddleViT README",
                licence="Apache-2.0",
                preprocessing=whole(img_size),
                note="one shared folder for all its XCiT"
                + ("; the README repeats the figures of another row" if doubtful else ""),
            )
    for file, tag, top1, top5 in tables.XCIT_MINDCV:
        yield direct(
            _mindcv(file),
            model="xcit_tiny_12_p16_224",
            tag=tag,
            origin="MindCV",
            sha256=file.split("224-")[1][:8],
            scores={"top1": top1, "top5": top5},
            source="MindCV README",
            licence="Apache-2.0",
            preprocessing=cropped(224),
            note=f"MindCV's own training; {xcit_names.MINDCV.departs}",
        )
    for size, suffix, tag in (
        (size, *run) for size in ("medium_24_p8", "large_24_p8") for run in (("", "in1k"), ("_dist", "dist_in1k"))
    ):
        yield _easycv(f"classification/timm/xcit/xcit_{size}_224{suffix}", f"xcit_{size}_224", tag)
    for size in tables.XCIT_DINO:
        name = f"xcit_{size}_224"
        facts: dict[str, Any] = dict(
            task="self-supervised",
            method="dino",
            preprocessing=cropped(224),
            note=f"backbone without a classifier; {_UNSEEN}",
        )
        yield _easycv(f"selfsup/xcit/dino_xcit_{size}_pretrain", name, "dino_in1k", **facts)
        facts |= dict(model=name, origin="DINO", licence="Apache-2.0")
        folder = f"{FB}/dino/dino_xcit_{size}_pretrain/dino_xcit_{size}"
        yield direct(f"{folder}_pretrain.pth", tag="dino_in1k", **facts | dict(note="backbone without a classifier"))
        note = "teacher, or the student by wrapper='student'; both with the projection of training, which is left"
        yield direct(f"{folder}_pretrain_full_checkpoint.pth", tag="dino_full_in1k", **facts | dict(note=note))
        note = "the classifier alone: load the backbone first, then this with strict=False"
        yield direct(f"{folder}_linearweights.pth", tag="dino_linear_in1k", **facts | dict(note=note))
    yield direct(
        f"{FB}/vissl/model_zoo/dino_300ep_xcitsmall16/model_phase250.torch",
        model="xcit_small_12_p16_224",
        tag="vissl_dino_in1k",
        task="self-supervised",
        method="dino",
        origin="VISSL",
        file="vissl_dino_300ep_xcitsmall16_model_phase250.torch",
        scores={"knn": 74.8},
        source="VISSL model zoo",
        licence="MIT",
        preprocessing=cropped(224),
        note="the student's backbone without a classifier, wrapper='teacher' takes the teacher's; phase 250 of 300",
    )
    yield from _robust()
    for size, path, sha256 in tables.XCIT_BIRDER:
        yield _birder(path, f"xcit_{size}_224", "il_common", sha256, 256)


def _robust() -> Iterator[Checkpoint]:
    """Adversarially trained (Debenedetti et al., arXiv 2209.07399), mirrored in part by RobustBench."""
    for (width, data), (drive, autoattack, clean) in tables.XCIT_ROBUST.items():
        cifar = data in _CIFAR
        mirrored = cifar or data == "eps4_in1k"
        options: dict[str, Any] = {} if width == "s" else {"depth": 12}
        if cifar:
            mean, std = _CIFAR[data]
            preprocessing = Preprocessing(img_size=(32, 32), mean=mean, std=std)
            options |= {"img_size": (32, 32), "patch_size": 4, "stem_depth": 4}
        else:
            # As their configs say: not normalised on ImageNet (nor by RobustBench), so in finetuning.
            mean, std = _UNIT if data.endswith("in1k") else _HALVES
            preprocessing = replace(whole(224), mean=mean, std=std)
        classes = {"cifar10": 10, "cifar100": 100, "flowers102": 102, "caltech101": 101}.get(data)
        note = f"{classes} classes: give num_classes={classes}; " if classes else ""
        tag = f"robust_{data}"
        name = f"xcit_{_ROBUST_WIDTHS[width]}_p16"
        mirror = f"debenedetti2022light-xcit-{width}-{'imagenet' if data == 'eps4_in1k' else data}-linf.pth.tar"
        yield Checkpoint(
            model=name,
            tag=tag,
            task="robust classification",
            origin="RobustBench" if mirrored else "robust XCiT",
            url=f"https://github.com/RobustBench/robustbench/releases/download/v1.1/{mirror}" if mirrored else "",
            pages=(Page(url=f"https://drive.google.com/file/d/{drive}/view?usp=sharing", site="Google Drive"),),
            file=mirror if mirrored else f"{name}.{tag}.pth.tar",
            scores={"autoattack": autoattack, "clean": clean},
            source="its authors' README",
            licence="MIT" if mirrored else "",
            preprocessing=preprocessing,
            options=options,
            note=f"{note}adversarial training"
            + ("; mean and std from its authors' config" if classes in (101, 102) else "")
            + ("; its authors call its patch size 12" if classes in (101, 102) else ""),
        )


def cait() -> Iterator[Checkpoint]:
    for size, (top1, top5, *share) in tables.CAIT_PADDLEVIT.items():
        yield _paddlevit_cait(size, "paddlevit_dist_in1k", (top1, top5), share)
    top1, top5, *share = tables.CAIT_PADDLEVIT_OWN
    own = _paddlevit_cait("xxs24_224", "paddlevit_in1k", (top1, top5), share)
    yield replace(own, note="PaddleViT's own training")
    for size, (number, file) in tables.CAIT_PPIM.items():
        yield direct(
            f"https://bj.bcebos.com/v1/ai-studio-online/{number}?responseContentDisposition=attachment%3B%20filename%3D"
            + file,
            tag="ppim_dist_in1k",
            origin="ppim",
            file=file,
            note=f"names inferred from its model; {_UNSEEN}",
            **_cait_facts(size),
        )
    for size in tables.CAIT_PADDLEVIT:
        yield direct(
            f"https://github.com/IMvision12/keras-models/releases/download/v0.1/cait_{size}_fb_dist_in1k.weights.h5",
            tag="keras_dist_in1k",
            origin="Keras",
            note=f"converted from timm's; names inferred from its successor, zeromodels 1.3.6; {_UNSEEN}",
            **_cait_facts(size),
        )
        yield Checkpoint(
            tag="tfhub_dist_in1k",
            origin="TF Hub",
            pages=(Page(url="https://tfhub.dev/sayakpaul/collections/cait/1", site="TensorFlow Hub"),),
            file=f"cait_{size}_tfhub.pb",
            unreadable="is a SavedModel of TensorFlow, a program and not weights; take the same weights from "
            f"cait_{size}.fb_dist_in1k",
            note="its collection's scores: top-1 78.5 to 86.1",
            **_cait_facts(size),
        )
    for size in ("xxs24_224", "xxs36_224", "s24_224"):
        yield _easycv(f"classification/timm/cait/{size.upper()}", f"cait_{size}", "dist_in1k")
    yield Checkpoint(
        tag="sat_in1k",
        origin="SAT",
        pages=(
            Page(
                url="https://cloud.tsinghua.edu.cn/d/dd80f9d39d454bc29ce4/files/?p=%2Fcait-s24-224.zip&dl=1",
                site="Tsinghua Cloud",
            ),
        ),
        file="sat_cait-s24-224.zip",
        unreadable="is a zipped folder of SwissArmyTransformer, whose names are none that are known here; take the "
        "same weights from cait_s24_224.fb_dist_in1k",
        note=_UNSEEN,
        **_cait_facts("s24_224"),
    )
    yield _birder("cait_xxs24_il-common", "cait_xxs24_224", "il_common", "1e7b3ba1", 256)


def crossformer() -> Iterator[Checkpoint]:
    for path, tag, sha256, size in tables.CROSSFORMER_BIRDER:
        group = size // 32
        options = {"img_size": (size, size), "group_sizes": (group,) * 4}
        yield replace(_birder(path, "crossformer_small", tag, sha256, size), options=options)


def crossvit() -> Iterator[Checkpoint]:
    for size, file, tag, scores in tables.CROSSVIT_MINDCV:
        yield direct(
            _mindcv(file),
            model=f"crossvit_{size}_240",
            tag=tag,
            origin="MindCV",
            sha256=file.split("-")[-2 if file.endswith("910v2") else -1],
            scores=dict(zip(("top1", "top5"), scores, strict=False)),
            source="MindCV README" if scores else "",
            licence="Apache-2.0",
            preprocessing=cropped(240),
            note=f"MindCV's own training; {crossvit_names.MINDCV.departs}",
        )
    for size in ("tiny", "small", "base"):
        yield _easycv(f"classification/timm/crossvit/crossvit_{size}_224", f"crossvit_{size}_240", "in1k")
    for size, sha256 in tables.CROSSVIT_LUCID.items():
        yield direct(
            f"https://huggingface.co/lucid-dl/crossvit-{size}/resolve/main/IN1K/model.safetensors",
            model=f"crossvit_{size}_240",
            tag="lucid_in1k",
            origin="lucid",
            file=f"lucid_crossvit-{size}.safetensors",
            sha256=sha256,
            licence="Apache-2.0",
            preprocessing=cropped(240),
            note=f"converted from timm's; names as in lucid-dl 3.16.0; {_UNSEEN}",
        )
    entry = _birder("crossvit_9d_il-common", "crossvit_9_dagger_240", "il_common", "08f674d8", 240)
    yield replace(entry, options={}, note=f"{entry.note}; {crossvit_names.BIRDER.departs}")


def _cait_facts(size: str) -> dict[str, Any]:
    return dict(model=f"cait_{size}", licence="Apache-2.0", preprocessing=whole(int(size.rpartition("_")[2])))


def _paddlevit_cait(size: str, tag: str, scores: tuple[float, float], share: list[Any]) -> Checkpoint:
    drive, baidu, code = share
    return Checkpoint(
        tag=tag,
        origin="PaddleViT",
        pages=(
            Page(url=f"https://drive.google.com/file/d/{drive}/view?usp=sharing", site="Google Drive"),
            Page(url=f"https://pan.baidu.com/s/{baidu}?pwd={code}", site="Baidu", code=code),
        ),
        file=f"cait_{size}.{tag}.pdparams",
        scores=dict(zip(("top1", "top5"), scores, strict=True)),
        source="PaddleViT README",
        **_cait_facts(size),
    )


def _easycv(path: str, model: str, tag: str, **facts: Any) -> Checkpoint:
    size = int(model[-3:])
    file = f"easycv_{path.rsplit('/', 1)[-1]}.pth"
    own: dict[str, Any] = dict(model=model, origin="EasyCV", licence="Apache-2.0", note=f"a mirror; {_UNSEEN}")
    own["preprocessing"] = cropped(size) if model.startswith("crossvit") else whole(size)
    scheme = "http" if path.startswith("selfsup") else "https"  # as EasyCV gives them
    return direct(f"{scheme}://{_EASYCV}/{path}.pth", tag=f"easycv_{tag}", file=file, **own | facts)


def _mindcv(path: str) -> str:
    host = "download-mindspore.osinfra.cn" if path.endswith("910v2") else "download.mindspore.cn"
    return f"https://{host}/toolkits/mindcv/{path}.ckpt"


def _birder(path: str, model: str, tag: str, sha256: str, img_size: int) -> Checkpoint:
    """Trained by birder on birds."""
    size = (img_size, img_size)
    host = "huggingface.co/birder-project" if "/" in path else "f000.backblazeb2.com/file/birder/models"
    return direct(
        f"https://{host}/{path}.pt",
        model=model,
        tag=f"birder_{tag}",
        origin="birder",
        sha256=sha256,
        licence="Apache-2.0",
        preprocessing=Preprocessing(img_size=size, mean=tables.BIRDER_MEAN, std=tables.BIRDER_STD),
        options={"img_size": size},
        note=_BIRDS,
    )
