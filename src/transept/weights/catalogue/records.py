"""Published checkpoints: where they lie, how to feed them, what they score, under which licence.

An entry is one released file. The tables are in `tables.py`; here is what follows from them by rule: names, URLs,
preprocessing. Licences are those that the repositories state for themselves; none states another one for its weights.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from transept.data.classification.transforms import Preprocessing
from transept.errors import UsageError
from transept.models.crossformer import LARGE_GROUPS
from transept.weights.catalogue import ports, tables
from transept.weights.catalogue.checkpoint import FB, XCIT_RUNS, Checkpoint, Page, cropped, direct, whole
from transept.weights.convert import crossvit

METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "knn": "k-NN",
    "linear": "linear",
    "autoattack": "AutoAttack",
    "clean": "clean",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
    "miou": "mIoU",
    "miou_ms": "mIoU ms",
}
"""Score names as plain data, and in words. Classification on ImageNet-1k, detection on COCO, segmentation
on ADE20K ("ms": several scales, and with CAT flipped). Robust models: accuracy under AutoAttack, and without attack."""


def checkpoints_of(model: str) -> list[Checkpoint]:
    """The released files of a registered model, official ones first; the first is its default."""
    return [checkpoint for checkpoint in CHECKPOINTS if checkpoint.registered == model]


def unpublished(model: str) -> str | None:
    """Why a registered model has no released files; None where it has some."""
    return next((why for pattern, why in tables.UNPUBLISHED.items() if fnmatchcase(model, pattern)), None)


def set_preprocessing(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Make `model.pretrained_cfg` say how the weights want their pictures; the image size stays the model's own."""
    config: dict[str, Any] | None = getattr(model, "pretrained_cfg", None)
    if config is None:
        raise UsageError(
            f"{type(model).__name__} has no pretrained_cfg, so it cannot carry {checkpoint.name}'s preprocessing"
        )
    config.update(
        crop_pct=checkpoint.preprocessing.crop_pct,
        crop_mode=checkpoint.preprocessing.crop_mode,
        interpolation=checkpoint.preprocessing.interpolation,
        mean=checkpoint.preprocessing.mean,
        std=checkpoint.preprocessing.std,
        tag=checkpoint.tag,
    )


# The dense models' pictures keep their sides' ratio and fill 800 x 1333 or 512 x 2048.
_COCO = Preprocessing(img_size=(800, 1333), crop_mode="fit", interpolation="bilinear")
_ADE20K = Preprocessing(img_size=(512, 2048), crop_mode="fit", interpolation="bilinear")
_CAT_FCOS = dataclasses.replace(
    _COCO, mean=(102.9801 / 255, 115.9465 / 255, 122.7717 / 255), std=(1 / 255, 1 / 255, 1 / 255)
)
_BGR = "channels, mean and std in the order blue, green, red"


def _xcit() -> Iterator[Checkpoint]:
    official: dict[str, Any] = dict(source="official README", licence="Apache-2.0")
    for size, scores in tables.XCIT_TOP1.items():
        for (img_size, suffix, tag), top1 in zip(XCIT_RUNS, scores, strict=True):
            name = f"xcit_{size}_{img_size}"
            facts = official | dict(model=name, scores={"top1": top1}, preprocessing=whole(img_size))
            yield direct(f"{FB}/xcit/{name}{suffix}.pth", tag=f"fb_{tag}", **facts)
            yield _timm(name, f"fb_{tag}", facts)
    for size, (file, knn, linear) in tables.XCIT_DINO.items():
        yield direct(
            f"{FB}/xcit/xcit_{file}_dino.pth",
            model=f"xcit_{size}_224",
            tag="fb_dino_in1k",
            task="self-supervised",
            method="dino",
            scores={"knn": knn, "linear": linear},
            preprocessing=whole(224),
            note="backbone without a classifier",
            **official,
        )
    for size, (box_ap, mask_ap, fpn, upernet) in tables.XCIT_DENSE.items():
        odd = "its config file sets patch size 8" if size == "medium_24_p16" else ""
        for folder, file, method, schedule, scores in (
            ("coco", "maskrcnn", "mask_rcnn", "3x_coco", {"box_ap": box_ap, "mask_ap": mask_ap}),
            ("ade", "sem_fpn", "semantic_fpn", "80k_ade20k", {"miou": fpn}),
            ("ade", "upernet", "upernet", "160k_ade20k", {"miou": upernet}),
        ):
            yield direct(
                f"{FB}/xcit/{folder}/{file}_xcit_{size}.pth",
                model=f"xcit_{size}",
                tag=f"{method}_{schedule}",
                task="detection" if folder == "coco" else "segmentation",
                method=method,
                scores=scores,
                preprocessing=_COCO if folder == "coco" else _ADE20K,
                note=odd if folder == "coco" else "",
                **official,
            )
    for size, runs in tables.XCIT_MMPRETRAIN.items():
        for (img_size, _, tag), (top1, top5, stamp) in zip(XCIT_RUNS, runs, strict=True):
            stem = f"xcit-{size.replace('_', '-')}_3rdparty{'-dist' if 'dist' in tag else ''}_in1k"
            # Its configs take 224 of 256, and press the whole picture into 384 x 384.
            pressed = Preprocessing(img_size=(img_size, img_size), crop_mode="squash")
            yield direct(
                "https://download.openmmlab.com/mmclassification/v0/xcit/"
                f"{stem}{'-384px' if img_size == 384 else ''}_{stamp}.pth",
                model=f"xcit_{size}_{img_size}",
                tag=f"mmpretrain_{tag}",
                origin="MMPretrain",
                sha256=stamp.partition("-")[2],
                scores={"top1": top1, "top5": top5},
                source="MMPretrain 1.2.0",
                licence="Apache-2.0",
                preprocessing=cropped(img_size) if img_size == 224 else pressed,
                note="converted from the official file, and scored with MMPretrain's own preprocessing",
            )
    for distilled, table in ("", tables.XCIT_PASSL), ("dist_", tables.XCIT_PASSL_DISTILLED):
        for size, (top1, top5) in table.items():
            yield _passl(
                f"xcit/xcit_{size}_224{'_dist' if distilled else ''}",
                model=f"xcit_{size}_224",
                tag=f"passl_{distilled}in1k",
                scores={"top1": top1, "top5": top5},
                preprocessing=whole(224),
                note="PASSL's own distillation" if distilled else "",
            )


def _cait() -> Iterator[Checkpoint]:
    for size, (top1, source) in tables.CAIT.items():
        img_size = int(size.rpartition("_")[2])
        facts = dict(
            model=f"cait_{size}",
            scores={"top1": top1},
            source=source,
            licence="Apache-2.0",
            preprocessing=whole(img_size),
            note="to be evaluated in float32, its README says" if size == "m48_448" else "",
        )
        yield direct(f"{FB}/deit/{size.upper()}.pth", tag="fb_dist_in1k", **facts)
        yield _timm(f"cait_{size}", "fb_dist_in1k", facts)
        if size in tables.CAIT_PASSL:
            file, top1, top5 = tables.CAIT_PASSL[size]
            yield _passl(
                f"cait/{file}",
                model=f"cait_{size}",
                tag="passl_dist_in1k",
                scores={"top1": top1, "top5": top5},
                preprocessing=whole(img_size),
            )


def _timm(model: str, tag: str, facts: Mapping[str, Any]) -> Checkpoint:
    """The official weights under timm's names, on the Hugging Face hub."""
    return direct(
        f"https://huggingface.co/timm/{model}.{tag}/resolve/main/model.safetensors",
        **{**facts, "tag": f"timm_{tag}", "origin": "timm", "file": f"{model}.{tag}.safetensors"},
    )


def _passl(stem: str, **facts: Any) -> Checkpoint:
    return direct(
        f"https://passl.bj.bcebos.com/vision_transformers/{stem}.pdparams",
        **({"origin": "PASSL", "source": "PASSL README", "licence": "Apache-2.0"} | facts),
    )


def _cat() -> Iterator[Checkpoint]:
    release = "https://github.com/linhezheng19/CAT/releases"
    inferred = "address inferred from the file's name in the README's history"
    old = "older module names"

    def entry(file: str, **facts: Any) -> Checkpoint:
        return direct(
            f"{release}/download/v1.0/{file}.pth",
            pages=(Page(url=f"{release}/tag/v1.0", site="GitHub release"),),
            licence="MIT",
            **facts,
        )

    for size, (top1, top5) in tables.CAT.items():
        facts: dict[str, Any] = dict(
            model=f"cat_{size}",
            scores={"top1": top1, "top5": top5},
            preprocessing=cropped(224),
        )
        yield entry(f"cat_{size}_new", tag="in1k", source="official README", note=inferred, **facts)
        yield entry(f"cat_{size}", tag="v1_in1k", source="first official README", note=f"{old}; {inferred}", **facts)
    for run, both in tables.CAT_DENSE.items():
        method, schedule = _method(run)
        data = "ade20k" if method == "semantic_fpn" else "coco"
        for size, scores in zip(("small", "base"), both, strict=True):
            notes = [_BGR] if method == "fcos" else []
            yield entry(
                f"{method}_cat_{size}_{schedule}{'_ade20k' if data == 'ade20k' else ''}",
                model=f"cat_{size}",
                tag=f"{run}_{data}",
                task="detection" if data == "coco" else "segmentation",
                method=method,
                scores=_dense_scores(data, scores),
                source="official README",
                preprocessing=_CAT_FCOS if method == "fcos" else _COCO if data == "coco" else _ADE20K,
                note="; ".join([*notes, old, inferred]),
            )


def _crossformer() -> Iterator[Checkpoint]:
    def entry(model: str, tag: str, drive: str, baidu: str, code: str, **facts: Any) -> Checkpoint:
        # The ++ shares carry their code in the address.
        pages = [Page(url=f"https://pan.baidu.com/s/{baidu}{'' if drive else f'?pwd={code}'}", site="Baidu", code=code)]
        if drive:
            pages.insert(0, Page(url=f"https://drive.google.com/file/d/{drive}/view?usp=sharing", site="Google Drive"))
        name = f"crossformer_{model}"
        return Checkpoint(
            model=name,
            tag=tag,
            pages=tuple(pages),
            file=f"{name}.{tag}.pth",
            source="official README",
            licence="MIT",
            **facts,
        )

    for size, (top1, *share) in tables.CROSSFORMER.items():
        shared = "the README gives one share for large and huge" if size in ("pp_large", "pp_huge") else ""
        yield entry(size, "in1k", *share, scores={"top1": top1}, preprocessing=cropped(224), note=shared)
    for (size, tag), (scores, *share) in tables.CROSSFORMER_DENSE.items():
        data = "coco" if "coco" in tag else "ade20k"
        method = "semantic_fpn" if tag.startswith("fpn") else _method(tag)[0]
        yield entry(
            size,
            tag,
            *share,
            task="detection" if data == "coco" else "segmentation",
            method=method,
            scores=_dense_scores(data, scores),
            preprocessing=_COCO if data == "coco" else _ADE20K,
            # The published operations of Semantic FPN fit the large groups only.
            options=LARGE_GROUPS if method == "semantic_fpn" else {"grouping": "legacy"},
            note="" if data == "coco" else "sides are scaled, then go up to the next multiples of 32",
        )


def _crossvit() -> Iterator[Checkpoint]:
    for size, (top1, *scored_by_timm) in tables.CROSSVIT.items():
        side = int(size[-3:])
        preprocessing = cropped(side) if side == 240 else whole(side)
        facts: dict[str, Any] = dict(model=f"crossvit_{size}", licence="Apache-2.0", preprocessing=preprocessing)
        official = size.replace("240", "224").replace("408", "384")  # after the picture of the large branch
        yield direct(
            f"https://github.com/IBM/CrossViT/releases/download/weights-0.1/crossvit_{official}.pth",
            tag="in1k",
            scores={"top1": top1},
            source="paper",
            note="timm and PaddleViT score this file 82.5" if size == "18_dagger_240" else "",
            **facts,
        )
        scores = dict(zip(("top1", "top5"), scored_by_timm, strict=True))
        yield _timm(f"crossvit_{size}", "in1k", facts | dict(scores=scores, source="timm's results"))
        top1, top5, drive, baidu, code = tables.CROSSVIT_PADDLEVIT[size]
        yield Checkpoint(
            tag="paddlevit_in1k",
            origin="PaddleViT",
            pages=(
                Page(url=f"https://drive.google.com/file/d/{drive}/view?usp=sharing", site="Google Drive"),
                Page(url=f"https://pan.baidu.com/s/{baidu}?pwd={code}", site="Baidu", code=code),
            ),
            file=f"crossvit_{size}.paddlevit_in1k.pdparams",
            scores={"top1": top1, "top5": top5},
            source="PaddleViT README",
            note=f"scored with pictures of {official[-3:]}; {crossvit.PADDLEVIT.departs}",
            **facts,
        )


def _bixt() -> Iterator[Checkpoint]:
    for size, (top1, top5, number) in tables.BIXT.items():
        yield Checkpoint(
            model=f"bixt_{size}",
            tag="in1k",
            pages=(Page(url=f"https://figshare.unimelb.edu.au/ndownloader/files/{number}", site="figshare"),),
            file=f"bixt_{size}.in1k.pth",
            scores={"top1": top1, "top5": top5},
            source="official table of weights",
            licence="Apache-2.0",
            preprocessing=cropped(384 if size.endswith("384") else 224),
            note="a zip; what is in it is the file to load",
        )


def _teachers() -> Iterator[Checkpoint]:
    # RegNetY-160 taught the distilled XCiT and CaiT, on the pictures that these were trained with.
    facts: dict[str, Any] = dict(model="regnety_160", task="teacher", licence="Apache-2.0", preprocessing=cropped(224))
    note = "teacher of the distilled models; timm builds the network; no score printed, preprocessing by DeiT's default"
    yield direct(f"{FB}/deit/regnety_160-a5fe301d.pth", tag="fb_in1k", sha256="a5fe301d", note=note, **facts)
    yield _passl("xcit/regnety_160", tag="passl_in1k", **facts, source="", note=note)


def _method(run: str) -> tuple[str, str]:
    """`mask_rcnn_1x_ms` to method and schedule."""
    methods = ("cascade_rcnn", "mask_rcnn", "semantic_fpn", "retinanet", "upernet", "fcos", "atss")
    method = next(method for method in methods if run.startswith(method))
    return method, run.removeprefix(f"{method}_")


def _dense_scores(data: str, values: Sequence[float]) -> dict[str, float]:
    metrics = ("box_ap", "mask_ap") if data == "coco" else ("miou", "miou_ms")
    return dict(zip(metrics, values, strict=False))


def _in_order(entries: Iterator[Checkpoint]) -> list[Checkpoint]:
    """The entries that `pretrained=True` may mean come first: classifiers, of the authors, to be fetched directly."""
    return sorted(
        entries, key=lambda entry: (entry.task != "classification", entry.origin != "official", not entry.url)
    )


CHECKPOINTS: tuple[Checkpoint, ...] = tuple(
    checkpoint
    for families in (
        (_xcit, ports.xcit),
        (_cait, ports.cait),
        (_cat,),
        (_crossformer, ports.crossformer),
        (_crossvit, ports.crossvit),
        (_bixt,),
        (_teachers,),
    )
    for checkpoint in _in_order(entry for family in families for entry in family())
)
