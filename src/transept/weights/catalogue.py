"""Published checkpoints of the classifiers: where they lie, how to feed them, what they score."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One released file. `model.tag` is its full name, in timm's words where timm has it."""

    model: str
    tag: str
    url: str
    top1: float
    """ImageNet-1k validation accuracy in percent, as printed by `source`."""
    source: str
    licence: str = "Apache-2.0"
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    @property
    def name(self) -> str:
        return f"{self.model}.{self.tag}"


_XCIT_TOP1 = {  # official README: 224, 224 distilled, 384 distilled
    "nano_12_p16": (69.9, 72.2, 75.4),
    "tiny_12_p16": (77.1, 78.6, 80.9),
    "tiny_24_p16": (79.4, 80.4, 82.6),
    "small_12_p16": (82.0, 83.3, 84.7),
    "small_24_p16": (82.6, 83.9, 85.1),
    "medium_24_p16": (82.7, 84.3, 85.4),
    "large_24_p16": (82.9, 84.9, 85.8),
    "nano_12_p8": (73.8, 76.3, 77.8),
    "tiny_12_p8": (79.7, 81.2, 82.4),
    "tiny_24_p8": (81.9, 82.6, 83.7),
    "small_12_p8": (83.4, 84.2, 85.1),
    "small_24_p8": (83.9, 84.9, 85.6),
    "medium_24_p8": (83.7, 85.1, 85.8),
    "large_24_p8": (84.4, 85.4, 86.0),
}
_CAIT_FILES = {  # file, top-1: the official README, which lists no XXS models; those are the paper's (Table 3)
    "cait_xxs24_224": ("XXS24_224", 78.4, "paper"),
    "cait_xxs24_384": ("XXS24_384", 80.9, "paper"),
    "cait_xxs36_224": ("XXS36_224", 79.7, "paper"),
    "cait_xxs36_384": ("XXS36_384", 82.2, "paper"),
    "cait_xs24_384": ("XS24_384", 84.1, "official README"),
    "cait_s24_224": ("S24_224", 83.5, "official README"),
    "cait_s24_384": ("S24_384", 85.1, "official README"),
    "cait_s36_384": ("S36_384", 85.4, "official README"),
    "cait_m36_384": ("M36_384", 86.1, "official README"),
    "cait_m48_448": ("M48_448", 86.5, "official README"),
}


def _xcit() -> list[Checkpoint]:
    root = "https://dl.fbaipublicfiles.com/xcit"
    runs = ((224, "", "fb_in1k"), (224, "_dist", "fb_dist_in1k"), (384, "_dist", "fb_dist_in1k"))
    return [
        Checkpoint(
            model=f"xcit_{size}_{img_size}",
            tag=tag,
            url=f"{root}/xcit_{size}_{img_size}{suffix}.pth",
            top1=top1,
            source="official README",
        )
        for size, scores in _XCIT_TOP1.items()
        for (img_size, suffix, tag), top1 in zip(runs, scores, strict=True)
    ]


def _cait() -> list[Checkpoint]:
    root = "https://dl.fbaipublicfiles.com/deit"
    return [
        Checkpoint(model=model, tag="fb_dist_in1k", url=f"{root}/{file}.pth", top1=top1, source=source)
        for model, (file, top1, source) in _CAIT_FILES.items()
    ]


CHECKPOINTS: tuple[Checkpoint, ...] = (*_xcit(), *_cait())


def checkpoints_of(model: str) -> list[Checkpoint]:
    """The released files of a model; the first is its default."""
    return [checkpoint for checkpoint in CHECKPOINTS if checkpoint.model == model]
