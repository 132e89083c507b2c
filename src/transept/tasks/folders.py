"""Models as folders and hub repositories: weights, a plain-data config and a model card.

These functions stand here and not in `weights`, because a folder may hold a task: a `Classifier` with its class names.
`config.json` speaks timm's language (`architecture`, `num_classes`, `model_args`, `label_names`, `pretrained_cfg`),
so timm reads it too.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike, sep
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.utils import unwrap_model
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from transept.data.classification.transforms import Preprocessing
from transept.errors import TranseptError, UsageError, unknown
from transept.files import write_together
from transept.models.backbone import Backbone
from transept.models.registry import build_model, family_of, find_model
from transept.tasks.classify import Classifier
from transept.tasks.labelling import labelling_of
from transept.weights.card import MARKER, model_card
from transept.weights.catalogue.records import CHECKPOINTS, Checkpoint
from transept.weights.convert import dialect_of, from_official
from transept.weights.convert.rules import entries_of, tensors_of
from transept.weights.fetch import hub
from transept.weights.load import find_checkpoint

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"


def save_pretrained(
    model: Backbone | Classifier | nn.Module,
    folder: str | PathLike[str],
    *,
    card: bool = True,
    weights: str | None = None,
    licence: str | None = None,
    datasets: Sequence[str] | None = None,
) -> Path:
    """Write `model.safetensors`, `config.json` and README.md, the model card, for `from_pretrained`.

    The three replace what `folder` held together, or not at all; its other files stay, and so does a README.md that
    we did not write.

    Args:
        model: what `create_model` made, alone, under a wrapper (DDP, `torch.compile`), or in a `Classifier`, whose
            class names and preprocessing are kept.
        folder: made if it does not exist.
        card: write README.md.
        weights: the published weights (`name.tag`) that these started from; the card gives their score, licence and
            preprocessing. Default: those that `load_weights` found in the catalogue, if any.
        licence: of the weights; default: that of the published weights they started from.
        datasets: names on the hub of what it was trained on; default: those of the published weights.

    Raises:
        TranseptError: the model is none of ours or was changed in a way that its config does not tell (pruned
            blocks, another head), or the folder cannot be written.
    """
    folder = Path(folder)
    saved = _describe(model, weights)
    name = folder.resolve().name
    writers: dict[str, Any] = saved.writers()
    if card and _is_ours(folder / CARD):
        text = saved.card(name, licence, datasets)
        writers[CARD] = lambda path: path.write_text(text, encoding="utf-8")
    write_together(folder, writers)
    return folder


def push_to_hub(
    model: Backbone | Classifier | nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload the model with transept",
    revision: str | None = None,
    card: bool = True,
    weights: str | None = None,
    licence: str | None = None,
    datasets: Sequence[str] | None = None,
) -> str:
    """Put what `save_pretrained` writes into a repository of the hub, in one commit; returns its address.

    Args:
        repo_id: `owner/name`; made if it does not exist. `name` alone is under your own account.
        private: make it private.
        token: default: that of `hf auth login`, or of HF_TOKEN.
        commit_message: shown in the repository's history.
        revision: an existing branch; default: main.
        card: write README.md, unless the repository has one that we did not write.
        model, weights, licence, datasets: as in `save_pretrained`.

    Raises:
        TranseptError: as in `save_pretrained`; the token does not allow it; the network fails or is forbidden; with
            `private`, the repository exists and is public.
    """
    saved = _describe(model, weights)
    with tempfile.TemporaryDirectory() as name:
        write_together(Path(name), saved.writers())
        repo_id, url = hub.create_repository(repo_id, private=private, token=token)
        files = [*saved.writers()]
        if card and not hub.has_foreign_file(repo_id, CARD, marker=MARKER, token=token):
            Path(name, CARD).write_text(saved.card(repo_id, licence, datasets), encoding="utf-8")
            files.append(CARD)
        paths = {file: Path(name, file) for file in files}
        hub.commit(repo_id, paths, message=commit_message, revision=revision, token=token)
    return url


def from_pretrained(
    repo_or_folder: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    drop_path_rate: float = 0.0,
) -> Any:
    """The model that `save_pretrained` or `push_to_hub` wrote, in evaluation mode: a `Backbone`, or a `Classifier`.

    Nothing in the files is executed: `config.json` is checked field by field, and only safetensors are read.

    Args:
        repo_or_folder: a folder, or a repository's `owner/name`; a folder of that name wins.
        revision: branch, tag or commit of the repository; default: main.
        token: for private and gated repositories; default: that of `hf auth login`, or of HF_TOKEN.
        cache_dir: where downloads are kept; default: the hub's cache, which HF_HOME moves.
        drop_path_rate: stochastic depth, for training on.

    Raises:
        TranseptError: files are missing or broken, or do not fit together; the repository does not exist or is not
            open to us; the network fails, or is forbidden and the files are not in the cache.
    """
    folder = Path(repo_or_folder)
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"revision={revision!r} is for repositories of the hub; {str(folder)!r} is a folder")
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise TranseptError(f"the folder {str(folder)!r} has no {name}{_instead(folder)}")
        return _read(folder / CONFIG, folder / WEIGHTS, drop_path_rate)
    name = str(repo_or_folder)
    if folder.is_file():
        raise UsageError(f"{name!r} is a file; give its folder, or load it with create_model(name, weights=...)")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or (sep != "/" and sep in name):
        raise TranseptError(f"there is no folder {name!r}")
    options: dict[str, Any] = dict(token=token, cache_dir=cache_dir)
    config, commit = hub.download(name, CONFIG, revision=revision, **options)
    saved = _read_config(config)
    weights, _ = hub.download(name, WEIGHTS, revision=commit, **options)
    return _build(saved, weights, drop_path_rate)


def _instead(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".pt", ".ckpt"))
    if not pickles:
        return "; save_pretrained writes model.safetensors and config.json"
    return (
        f", only {pickles[0]!r}; reading it could run code, so load it with create_model(name, weights=...), which "
        "takes its tensors alone, and save that"
    )


def _is_ours(path: Path) -> bool:
    """Whether a card may be written there: there is none, or it is one of ours."""
    return not path.is_file() or MARKER in path.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Input:
    """timm's words for how pictures are brought to the model."""

    input_size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed_input_size: bool
    classifier: str | tuple[str, ...]
    num_classes: int
    first_conv: str | None = None

    def __post_init__(self) -> None:
        modes = [mode.value for mode in InterpolationMode]
        if self.interpolation not in modes:
            raise ValueError(f"interpolation is {self.interpolation!r}; known: {', '.join(modes)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}; it must be in (0, 1]")
        if min(self.std, default=0) <= 0 or len(self.mean) != len(self.std):
            raise ValueError(f"mean is {self.mean} and std is {self.std}; give as many of each, std above 0")
        if min(self.input_size) < 1:
            raise ValueError(f"input_size is {self.input_size}; give channels, height and width")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    """config.json."""

    architecture: str
    num_classes: int
    model_args: dict[str, Any]
    """Further arguments of `create_model`: those that differ from the variant's, and always the input's size."""
    pretrained_cfg: dict[str, Any]
    """An `_Input`."""
    transept_version: str
    global_pool: str
    task: Literal["classify"] | None = None
    label_names: list[str] | None = None
    weights: str | None = None
    """The published checkpoint (`name.tag`) that these weights started from."""
    problem_type: Literal["multi_label_classification"] | None = None
    """transformers' word for any number of labels."""
    thresholds: list[float] | None = None
    """The least probability of each of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Saved:
    """All that is written."""

    config: _Config
    state: Mapping[str, Tensor]
    origin: Checkpoint | None

    def writers(self) -> dict[str, Any]:
        fields = {name: value for name, value in dataclasses.asdict(self.config).items() if value is not None}
        text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        return {
            WEIGHTS: lambda path: _write_weights(self.named_state(), path),
            CONFIG: lambda path: path.write_text(text, encoding="utf-8"),
        }

    def named_state(self) -> Mapping[str, Tensor]:
        """The tensors under timm's names where it has the model: transformers reads these and no others."""
        if not self.in_timm:
            return self.state
        _, family = find_model(self.config.architecture)
        named = from_official(dict(self.state), family.name, "timm")
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in named.items()}

    @property
    def in_timm(self) -> bool:
        """timm, and transformers through it, build the model by themselves."""
        config, arguments = self.config, self.config.model_args
        _, family = find_model(config.architecture)
        return (
            family.in_timm
            and config.global_pool == "token"
            and "features_only" not in arguments
            and not family.not_in_timm & arguments.keys()
            and all(arguments.get(name, values[0]) in values for name, values in family.values_in_timm.items())
        )

    def card(self, repo_id: str, licence: str | None, datasets: Sequence[str] | None) -> str:
        config = self.config
        _, family = find_model(config.architecture)
        pyramid = config.model_args.get("features_only", False)
        use = config.task or ("features" if pyramid else "logits" if config.num_classes else "pooled")
        return model_card(
            config.architecture,
            family,
            use=use,
            num_classes=config.num_classes,
            preprocessing=config.pretrained_cfg,
            origin=self.origin,
            licence=licence,
            datasets=datasets,
            repo_id=repo_id,
            in_timm=self.in_timm,
        )


def _write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(state), path, {"format": "pt"})
    except SafetensorError as error:  # a full disk among them
        raise OSError(str(error)) from error


def _describe(model: nn.Module, weights: str | None) -> _Saved:
    """The facts to write about a model, checked: from it the model can be built again."""
    classifier = model if isinstance(model, Classifier) else None
    backbone = unwrap_model(classifier.model if classifier else model)
    if isinstance(backbone, Classifier):
        return _describe(backbone, weights)
    family = family_of(backbone)
    if not isinstance(backbone, Backbone) or family is None:
        raise TranseptError(f"a {type(backbone).__name__} cannot be saved; only models that create_model made can")
    cfg = backbone.pretrained_cfg
    architecture, variant = cfg["architecture"], family.variants[cfg["architecture"]]
    loaded = (c for c in CHECKPOINTS if c.registered == architecture and c.tag == cfg.get("tag"))
    origin = find_checkpoint(weights) if weights else next(loaded, None)
    source = classifier.preprocessing if classifier else None
    height, width = source.img_size if source else backbone.config.img_size
    if source is None and origin is not None:
        source = origin.preprocessing
    channels = cfg["input_size"][0]
    preprocessing = _Input(
        input_size=(channels, height, width),
        interpolation=source.interpolation if source else cfg["interpolation"],
        crop_pct=source.crop_pct if source else cfg["crop_pct"],
        crop_mode=source.crop_mode if source else cfg["crop_mode"],
        mean=tuple(source.mean if source else cfg["mean"]),
        std=tuple(source.std if source else cfg["std"]),
        fixed_input_size=cfg["fixed_input_size"],
        classifier=cfg["classifier"],
        num_classes=backbone.num_classes,
        first_conv=cfg.get("first_conv"),
    )
    arguments: dict[str, Any] = {"in_chans": channels, "img_size": backbone.config.img_size}
    for field in dataclasses.fields(variant):
        value = getattr(backbone.config, field.name)
        if field.name != "img_size" and value != getattr(variant, field.name):
            arguments[field.name] = value
    if backbone.is_pyramid:
        arguments |= {"features_only": True, "out_indices": backbone.out_indices}
    labelling = classifier.labelling.description() if classifier else {}
    config = _Config(
        architecture=architecture,
        num_classes=backbone.num_classes,
        model_args=arguments,
        pretrained_cfg={name: value for name, value in dataclasses.asdict(preprocessing).items() if value is not None},
        transept_version=version("transept"),
        global_pool=backbone.global_pool,
        task="classify" if classifier else None,
        label_names=classifier.classes if classifier else None,
        weights=origin.name if origin else None,
        problem_type="multi_label_classification" if labelling.get("multi_label") else None,
        thresholds=labelling.get("thresholds"),
    )
    state = {name: value.detach().contiguous() for name, value in backbone.state_dict().items()}
    if any(value.is_meta for value in state.values()):
        raise TranseptError(f"this {architecture} has no values yet: it is on the meta device")
    difference = _difference(_blank(config), {name: tuple(value.shape) for name, value in state.items()})
    if difference:
        raise TranseptError(
            f"this {architecture} was changed after it was built, so it could not be read back: {difference}; save "
            "its state_dict() instead"
        )
    return _Saved(config=config, state=state, origin=origin)


def _blank(config: _Config, **options: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's tensors, at no cost."""
    with torch.device("meta"):
        model = _instance(config, **options)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _instance(config: _Config, drop_path_rate: float = 0.0) -> Backbone:
    arguments = dict(config.model_args)
    if not arguments.get("features_only"):
        arguments["num_classes"] = config.num_classes
    return build_model(config.architecture, drop_path_rate=drop_path_rate, **arguments)


def _difference(expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The first of the differences between the tensors of a model and of a file, in words; "" for none."""
    differences = [f"{name} is missing" for name in expected if name not in shapes]
    differences += [f"{name} is unknown to the model" for name in shapes if name not in expected]
    differences += [
        f"{name} is {shapes[name]} for {shape} in the model"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    more = f" ({len(differences)} differences in all)" if len(differences) > 1 else ""
    return differences[0] + more if differences else ""


def _read(config: Path, weights: Path, drop_path_rate: float) -> Backbone | Classifier:
    return _build(_read_config(config), weights, drop_path_rate)


def _build(config: _Config, path: Path, drop_path_rate: float) -> Backbone | Classifier:
    """The model that a checked config describes, with the weights in `path`."""
    architecture = config.architecture
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            blanks = {name: torch.empty(part.get_shape(), device="meta") for name, part in slices.items()}
            shapes = {name: tuple(blank.shape) for name, blank in _official(blanks, architecture).items()}
            # A config may ask for a billion blocks; each has tensors, and the file has only so many.
            depth = config.model_args.get("depth", config.model_args.get("depths", 0))
            if sum(depth if isinstance(depth, tuple) else (depth,)) > len(slices):
                difference = f"it has {len(slices)} tensors for {depth} blocks"
            else:
                difference = _difference(_blank(config), shapes)
            if difference:
                raise TranseptError(
                    f"the weights in {str(path)!r} do not fit the {architecture} of {CONFIG}: {difference}"
                )
            model = _instance(config, drop_path_rate)
            tensors = _official({name: file.get_tensor(name) for name in slices}, architecture)
            for name, value in model.state_dict().items():
                fits = tensors[name].is_floating_point() == value.is_floating_point()
                if tensors[name].dtype not in _STORED or not fits:
                    raise TranseptError(
                        f"the weights in {str(path)!r} do not fit the {architecture} of {CONFIG}: {name} is of type "
                        f"{tensors[name].dtype} for {value.dtype} in the model"
                    )
            floating = {value.dtype for value in tensors.values() if value.is_floating_point()}
            if len(floating) == 1:
                model.to(floating.pop())
            model.load_state_dict(tensors)
    except (SafetensorError, OSError) as error:
        raise TranseptError(f"{str(path)!r} is no whole safetensors file ({error}); fetch or save it again") from error
    except UsageError as error:
        raise TranseptError(f"{CONFIG} describes no model that can be built: {error}") from error
    if config.global_pool not in model.global_pools:
        raise TranseptError(
            f"global_pool of {CONFIG} is {config.global_pool!r}; {architecture} has "
            f"{', '.join(map(repr, model.global_pools))}"
        )
    model.global_pool = config.global_pool  # pyright: ignore[reportAttributeAccessIssue]
    model.pretrained_cfg.update(
        config.pretrained_cfg, input_size=(config.model_args["in_chans"], *model.config.img_size)
    )
    if config.weights is not None:
        model.pretrained_cfg["tag"] = config.weights.partition(".")[2]
    if config.task is None:
        return model.eval()
    page = config.pretrained_cfg
    preprocessing = Preprocessing(
        img_size=page["input_size"][1:], **{key: page[key] for key in ("crop_pct", "interpolation", "mean", "std")}
    )
    assert config.label_names is not None
    labelling = labelling_of({"multi_label": config.problem_type is not None, "thresholds": config.thresholds})
    return Classifier(model, config.label_names, preprocessing, labelling=labelling).eval()


_STORED = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool}


def _official(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The tensors of a folder, which may have timm's names, under ours."""
    _, family = find_model(architecture)
    entries = entries_of(tensors)
    dialect = dialect_of(entries, family.name)
    return tensors_of(dialect.read(entries)) if dialect else tensors


def _read_config(path: Path) -> _Config:
    """config.json, checked field by field against what `save_pretrained` writes."""
    where = str(path)
    try:
        if path.stat().st_size > 2**26:
            raise TranseptError(f"{where!r} has {path.stat().st_size} bytes; it is no config of a model")
        page = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise TranseptError(f"{where!r} is no valid JSON ({str(error) or type(error).__name__})") from error
    if not isinstance(page, dict):
        raise TranseptError(f"{where!r} must hold an object of fields, not {type(page).__name__}")
    if "transept_version" not in page:
        raise TranseptError(f"{where!r} was not written by save_pretrained: it has no field 'transept_version'")
    try:
        config = _Config(**_fields(page, get_type_hints(_Config), _REQUIRED))
        _, family = find_model(config.architecture)
        variant = family.variants.get(config.architecture)
        if variant is None:
            raise _FieldError(f"architecture is {config.architecture!r}; its name needs its image size")
        hints = {**get_type_hints(type(variant)), **_ARGUMENTS}
        arguments = _fields(config.model_args, hints, {"in_chans", "img_size"}, "model_args.")
        pretrained = _fields(config.pretrained_cfg, get_type_hints(_Input), _INPUT, "pretrained_cfg.")
        _Input(**pretrained)
        names = config.label_names
        if config.task is None and names is not None:
            raise _FieldError("label_names belong to task 'classify', which is not given")
        if config.task is not None and len(names or ()) != config.num_classes:
            raise _FieldError(f"label_names has {len(names or ())} names for num_classes {config.num_classes}")
        if config.thresholds is not None and len(config.thresholds) != config.num_classes:
            raise _FieldError(f"thresholds has {len(config.thresholds)} numbers for num_classes {config.num_classes}")
    except ValueError as error:  # UsageError and _FieldError among them
        raise TranseptError(f"{where!r}: {error}{_newer(page)}") from error
    return dataclasses.replace(config, model_args=arguments, pretrained_cfg=pretrained)


class _FieldError(ValueError):
    """A field is wrong, and why."""


_ARGUMENTS: dict[str, Any] = {
    "in_chans": int,
    "img_size": tuple[int, int],
    "features_only": bool,
    "out_indices": tuple[int, ...],
}
_INPUT = {field.name for field in dataclasses.fields(_Input)} - {"first_conv"}
_REQUIRED = {"architecture", "num_classes", "model_args", "pretrained_cfg", "transept_version", "global_pool"}
_LARGEST = 2**16
"""The largest number in a config, classes among them: a hostile one must not keep us building."""


def _newer(page: dict[str, Any]) -> str:
    written = page["transept_version"]
    return f" (written by transept {written}, this is {version('transept')})" if written != version("transept") else ""


def _fields(page: dict[str, Any], hints: Mapping[str, Any], required: set[str], prefix: str = "") -> dict[str, Any]:
    """The fields of an object in JSON, as their annotated types."""
    for name in page:
        if name not in hints:
            raise unknown("field", f"{prefix}{name}", (f"{prefix}{hint}" for hint in hints))
    for name in sorted(required - page.keys()):
        raise _FieldError(f"it has no field {prefix + name!r}")
    return {name: _typed(value, hints[name], f"{prefix}{name}") for name, value in page.items()}


def _typed(value: Any, hint: Any, where: str) -> Any:
    """A value of JSON as its annotated type; lists become tuples where tuples are meant."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and type(None) in options:
            return None
        kinds = sorted(set(options) - {type(None)}, key=lambda kind: get_origin(kind) in (tuple, list))
        return _typed(value, kinds[-1 if isinstance(value, list) else 0], where)
    if origin is Literal:
        fits = isinstance(value, str) and value in options
    elif origin in (tuple, list):
        endless = origin is list or options[-1] is ...
        if isinstance(value, list) and len(value) <= _LARGEST and (endless or len(value) == len(options)):
            kinds = [options[0]] * len(value) if endless else options
            return origin(
                _typed(part, kind, f"{where}[{i}]") for i, (part, kind) in enumerate(zip(value, kinds, strict=True))
            )
        fits = False
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    else:
        fits = isinstance(value, origin or hint)
    if not fits:
        shown = json.dumps(value)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise _FieldError(f"{where} is {shown}, which is not {_in_words(hint)}")
    return value


def _in_words(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if hint is int:
        return f"a whole number of 0 to {_LARGEST}"
    if origin is Literal:
        return " or ".join(map(repr, options))
    if origin is tuple and options[-1] is not ...:
        return f"a list of {len(options)}"
    words = {float: "a number", str: "a string", bool: "true or false", dict: "an object"}
    return words.get(origin or hint, "a list")
