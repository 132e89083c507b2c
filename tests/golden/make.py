"""Write the golden files of this folder from the recorded outputs of the official models: `make golden`.

The recordings lie beside the repository (`../shared/reference`); the golden files keep the inputs' seeds, the
outputs, the parameter count and a fingerprint of the checkpoint's names and shapes. Weights are not stored:
`weights.py` makes the same ones on every machine.
"""

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
REFERENCE = HERE.parents[2] / "shared" / "reference"
SEGMENTERS = (  # recorded name, backbone
    ("semantic_fpn", "crossformer_small"),
    ("semantic_fpn.cat_s", "cat_small"),
    ("semantic_fpn.xcit_s12_p16", "xcit_small_12_p16"),
    ("upernet", "crossformer_small"),
    ("upernet.xcit_s12_p16", "xcit_small_12_p16"),
)
DETECTORS = (
    ("retinanet", "crossformer_small"),
    ("retinanet.cat_s", "cat_small"),
    ("fcos", "cat_small"),
    ("atss", "cat_small"),
    ("mask_rcnn", "crossformer_small"),
    ("mask_rcnn.cat_s", "cat_small"),
    ("mask_rcnn.xcit_s12_p8", "xcit_small_12_p8"),
    ("mask_rcnn.xcit_s12_p16", "xcit_small_12_p16"),
    ("cascade_rcnn", "cat_small"),
    ("cascade_mask_rcnn", "crossformer_small"),
)
FAMILIES = ("cat", "cabvit", "crossformer", "xcit", "cait", "crossvit", "bixt")


def fingerprint(shapes: dict[str, list[int]]) -> str:
    """Of the names and shapes of a state dict's floating-point entries, in any order."""
    lines = sorted(f"{key} {list(shape)}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def options(recording: dict) -> dict:
    """The recorded configuration where it differs from the variant's, as options of `create_model`."""
    config, name = recording.get("config", {}), recording["model"]
    if name.endswith("candidate_b"):
        return {"embed_dim": config["embed_dim"], "depths": config["depths"], "num_heads": config["num_heads"]}
    if name.startswith("crossvit") and "num_classes" in config:  # built for another size
        return {"img_size": config["img_size"][0], "num_classes": config["num_classes"]}
    if not name.startswith("crossformer"):
        return {}
    given = {"group_sizes": config["group_size"], "intervals": config["interval"]}
    given["adaptive_interval"] = config.get("adaptive_interval", config.get("adapt_inter", False))
    if "legacy" in name:
        given["grouping"] = "legacy"
    if "pad_type" in config:
        given["pad_side"] = "both" if config["pad_type"] else "end"
        given["group_type"] = config["group_type"]
        given["img_size"] = config["img_size"]
    return given


def short(summary: dict) -> dict:
    return {"shape": summary["shape"], "std": summary["std"], "sample": summary["sample"]}


def trim(recording: dict) -> dict:
    """What the tests read."""
    return {
        "model": recording["model"].partition("_dense")[0].partition("_candidate")[0],
        "options": options(recording),
        "dense": "logits" not in recording["outputs"],
        "source": recording["source"],
        "parameters": recording["parameters"],
        "input": recording["input"],
        "keys": fingerprint(recording["float_shapes"]),
        "outputs": {name: short(summary) for name, summary in recording["outputs"].items()},
        "features": {name: short(summary) for name, summary in recording["features"].items()},
    }


def systems() -> dict[str, dict]:
    """Of every recorded detector and segmenter: the names and shapes beside the backbone, and the backbone's print."""
    found = {}
    for recorded in sorted((REFERENCE / "dense_keys").glob("*.json")):
        table = json.loads(recorded.read_text())
        buffers = set(table["integer_buffers"])
        inner = {key.removeprefix("backbone."): shape for key, shape in table["shapes"].items() if key not in buffers}
        found[recorded.stem] = {
            "backbone": table["backbone"],
            "config": table["config"],
            "backbone_keys": fingerprint({key: inner[key] for key in inner if f"backbone.{key}" in table["shapes"]}),
            "shapes": {key: shape for key, shape in table["shapes"].items() if not key.startswith("backbone.")},
        }
    return found


def trim_table(name: str, backbone: str) -> dict:
    """A dense model's names and shapes, without those that hold nothing learned."""
    table = json.loads((REFERENCE / "dense_keys" / f"{name}.json").read_text())
    derived = [key for key in table["integer_buffers"] if not key.endswith("num_batches_tracked")]
    return {
        "method": name.partition(".")[0],
        "backbone": backbone,
        "source": table["config"],
        "parameters": table["parameters_by_part"],
        "keys": fingerprint({key: shape for key, shape in table["shapes"].items() if key not in derived}),
        "cases": {},
    }


def trim_segmenter(name: str, backbone: str) -> dict:
    """Names and shapes; and where recorded, the outputs."""
    trimmed = trim_table(name, backbone)
    recorded = REFERENCE / "dense" / f"{name}.json"
    if recorded.exists():
        recording = json.loads(recorded.read_text())
        trimmed["head_keys"] = fingerprint(recording["float_shapes"])
        for case, given in recording["cases"].items():
            outputs = {key: short(value) for key, value in given["outputs"].items() if "sample" in value}
            histogram = given["outputs"]["argmax_histogram_first_image"]
            trimmed["cases"][case] = {
                "image_size": given["image_size"],
                "inputs": given["inputs"],
                "outputs": outputs,
                "argmax_histogram_first_image": histogram,
            }
    return trimmed


def trim_detector(name: str, backbone: str) -> dict:
    """Names and shapes; and where recorded, the outputs, proposals and detections."""
    trimmed = trim_table(name, backbone)
    recorded = REFERENCE / "dense" / f"{name}.json"
    if recorded.exists():
        recording = json.loads(recorded.read_text())
        trimmed["head_keys"] = fingerprint(recording["float_shapes"])
        for case, given in recording["cases"].items():
            parts = given.pop("outputs")
            outputs = {key: short(value) for key, value in parts.items() if "sample" in value}
            proposals = [value for key, value in parts.items() if key.startswith("rpn_proposals")]
            trimmed["cases"][case] = given | {"outputs": outputs, "proposals": proposals}
    return trimmed


def main() -> int:
    if not REFERENCE.is_dir():
        print(f"no recordings at {REFERENCE}", file=sys.stderr)
        return 1
    for family in FAMILIES:
        (HERE / family).mkdir(exist_ok=True)
        for recorded in sorted((REFERENCE / family).glob("*.json")):
            trimmed = trim(json.loads(recorded.read_text()))
            (HERE / family / recorded.name).write_text(json.dumps(trimmed, separators=(",", ":")) + "\n")
    (HERE / "systems.json").write_text(json.dumps(systems(), separators=(",", ":")) + "\n")

    (HERE / "dense").mkdir(exist_ok=True)
    dense = {name: trim_segmenter(name, backbone) for name, backbone in SEGMENTERS}
    dense |= {name: trim_detector(name, backbone) for name, backbone in DETECTORS}
    dense["operations"] = json.loads((REFERENCE / "dense" / "operations.json").read_text())
    for name, trimmed in dense.items():
        (HERE / "dense" / f"{name}.json").write_text(json.dumps(trimmed, separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
