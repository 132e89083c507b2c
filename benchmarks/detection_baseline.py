"""What a detector of ours must beat on small data: torchvision's, from scratch, in the very same run.

torchvision's RetinaNet or Mask R-CNN, on a ResNet-18 or MobileNetV3 pyramid, takes the place of our detector: data,
augmentation, batches, schedule, optimiser, moving average, seed and validation are the recipe's. Choose
`--schedule.epochs` so that it has the recipe's time. Usage:

    uv run python benchmarks/detection_baseline.py quick-det --data ../shared/data/bccd --out runs/torchvision
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, resnet18
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from transept.heads.instances import Detections, Target
from transept.tasks.coco_results import to_coco_results
from transept.tasks.detect import Detector
from transept.training.jobs.detection import DetectJob
from transept.training.loop import run as runs
from transept.training.options.detect import DetectOptions
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe


class TorchvisionDetector(nn.Module):
    """A detector of torchvision with the interface of a `Detector`."""

    def __init__(self, detector: Detector, backbone: str, width: int, options: DetectOptions) -> None:
        super().__init__()
        self.preprocessing, self.classes = detector.preprocessing, detector.classes
        common: dict[str, Any] = dict(
            min_size=min(options.preprocessing.scale),
            max_size=max(options.preprocessing.scale),
            image_mean=[0.0] * 3,  # the pictures come normalised
            image_std=[1.0] * 3,
        )
        masks = detector.has_masks
        pyramid = _pyramid(backbone, width, masks)
        if masks:
            # The recipe's anchors and numbers of regions.
            sides = tuple((options.anchor_scale * 8 * 2**k,) for k in range(2, 7))
            rois = options.rois or 512
            self.net: Any = MaskRCNN(
                pyramid,
                len(self.classes) + 1,
                rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 5),
                box_batch_size_per_image=rois,
                rpn_post_nms_top_n_train=min(4 * rois, 2000),
                **common,
            )
        else:
            self.net = RetinaNet(pyramid, len(self.classes), **common)
        self.first = 1 if masks else 0  # label 0 is the background in torchvision's two-stage detectors

    @property
    def backbone(self) -> nn.Module:
        return self.net.backbone

    def forward(self, images: Tensor) -> Tensor:
        return images

    def loss(self, images: Tensor, targets: Sequence[Target]) -> Tensor:
        if not self.training:  # torchvision's detectors have no loss in evaluation
            return torch.zeros(())
        wanted = []
        for target in targets:
            wanted.append({"boxes": target.boxes, "labels": target.labels + self.first})
            if target.masks is not None:
                wanted[-1]["masks"] = target.masks.to(torch.uint8)
        return torch.stack(list(self.net(_unpadded(images, targets), wanted).values())).sum()

    @torch.no_grad()
    def found(self, images: Tensor, targets: Sequence[Target]) -> list[Detections]:
        """In the pixels of the pictures as they were."""
        answers = []
        for image, target in zip(_unpadded(images, targets), targets, strict=True):
            height, width = target.original_size or target.size
            (found,) = self.net([image])
            ratio = torch.tensor([width / target.size[1], height / target.size[0]]).repeat(2)
            masks = found.get("masks")
            if masks is not None:
                masks = nn.functional.interpolate(masks, (height, width), mode="bilinear")[:, 0] > 0.5
            answers.append(Detections(found["boxes"] * ratio, found["scores"], found["labels"] - self.first, masks))
        return answers

    def save(self, path: Path) -> None:
        torch.save(self.state_dict(), path)


def _pyramid(backbone: str, width: int, masks: bool) -> nn.Module:
    """Levels of strides 4 to 64 for Mask R-CNN, 8 to 128 for RetinaNet; batch norm learns, as nothing is pretrained."""
    if backbone == "resnet18":
        body: nn.Module = resnet18(weights=None)
        names, channels = ["layer1", "layer2", "layer3", "layer4"], [64, 128, 256, 512]
    else:
        body = mobilenet_v3_small(weights=None).features
        names, channels = ["1", "3", "8", "12"], [16, 24, 48, 576]
    start = 0 if masks else 1
    extra = LastLevelMaxPool() if masks else LastLevelP6P7(width, width)
    layers = {name: str(i) for i, name in enumerate(names[start:])}
    return BackboneWithFPN(body, layers, channels[start:], width, extra_blocks=extra)


def _unpadded(images: Tensor, targets: Sequence[Target]) -> list[Tensor]:
    return [image[:, : target.size[0], : target.size[1]] for image, target in zip(images, targets, strict=True)]


class TorchvisionJob(DetectJob):
    """The recipe's job with torchvision's detector."""

    backbone = "resnet18"
    width = 256

    def build(self, *, load: bool) -> nn.Module:
        detector = super().build(load=load)
        assert isinstance(detector, Detector)
        torch.manual_seed(self.recipe.seed)
        return TorchvisionDetector(detector, self.backbone, self.width, self.recipe.detect)

    def answers(self, task: Any, outputs: Any, targets: Sequence[Target]) -> list[dict[str, Any]]:
        numbers = [-1 if target.image_id is None else target.image_id for target in targets]
        originals = [target.original_size or target.size for target in targets]
        return to_coco_results(task.found(outputs, targets), numbers, self.splits.category_ids, originals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18", choices=["resnet18", "mobilenet_v3_small"])
    parser.add_argument("--width", type=int, default=256, help="channels of the pyramid and the convolutions on it")
    args, options = parser.parse_known_args()
    recipe = parse_recipe(read_recipe(args.recipe), ["--data", args.data, *options])
    TorchvisionJob.backbone, TorchvisionJob.width = args.backbone, args.width
    runs.JOBS["detect"] = TorchvisionJob
    started = time.process_time()
    result = runs.train(recipe, args.out)
    report = {
        "baseline": f"torchvision {'Mask R-CNN' if 'mask' in recipe.detect.method else 'RetinaNet'}, {args.backbone}, "
        f"width {args.width}",
        "metrics": result.metrics,
        "epoch": result.epoch,
        "seconds": round(result.seconds, 1),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
