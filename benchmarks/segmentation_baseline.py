"""What a segmenter of ours must beat on small data: the commonest class everywhere, and a U-Net of about the same cost.

The U-Net (segmentation_models_pytorch, from scratch) takes the place of our segmenter in the very same run: data,
augmentation, schedule, optimiser, seed and validation. Usage:

    uv run python benchmarks/segmentation_baseline.py quick-seg --data ../shared/data/camvid --out runs/unet
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from transept.cost.count import count
from transept.metrics.segmentation import ConfusionMeter
from transept.tasks.segment import Segmenter
from transept.training.jobs.segmentation import SegmentJob
from transept.training.loop import run as runs
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe


class UNet(nn.Module):
    """smp's U-Net with the interface of a `Segmenter`. It takes multiples of 32, so inputs are padded."""

    def __init__(self, segmenter: Segmenter, encoder: str, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.preprocessing, self.classes = segmenter.preprocessing, segmenter.classes
        self.net = smp.Unet(
            encoder, encoder_weights=None, decoder_channels=widths, classes=len(self.classes), encoder_depth=5
        )
        self.loss = segmenter.loss

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = nn.functional.pad(images, (0, -width % 32, 0, -height % 32))
        return self.net(padded)[..., :height, :width]

    def save(self, path: Path) -> None:
        torch.save(self.state_dict(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--widths", default="96,64,48,32,16")
    args, options = parser.parse_known_args()
    recipe = parse_recipe(read_recipe(args.recipe), ["--data", args.data, *options])
    ours, costs = [], {}

    class BaselineJob(SegmentJob):
        def build(self, *, load: bool) -> nn.Module:
            segmenter = super().build(load=load)
            assert isinstance(segmenter, Segmenter)
            ours.append(self)
            torch.manual_seed(recipe.seed)
            net = UNet(segmenter, args.encoder, tuple(map(int, args.widths.split(","))))
            long, short = recipe.segment.preprocessing.scale
            size = (-(-short // 32) * 32, -(-long // 32) * 32)
            costs.update({"unet": cost(net, size), "ours": cost(segmenter, size)})
            return net

    runs.JOBS["segment"] = BaselineJob
    result = runs.train(recipe, args.out)
    report = {"commonest_class": commonest(ours[0]), "unet": result.metrics, "seconds": result.seconds, "costs": costs}
    print(json.dumps(report, indent=1), file=sys.stdout)


def cost(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    found = count(model.eval(), size)
    return {"parameters": found.parameters, "macs": found.macs, "image": size}


def commonest(job: SegmentJob) -> float:
    """mIoU of saying everywhere what is commonest in training."""
    pixels = torch.zeros(256, dtype=torch.int64)
    for _, mask in job.splits.train:
        pixels += torch.bincount(mask.flatten(), minlength=256)
    meter = ConfusionMeter(len(job.splits.classes))
    for _, mask in job.splits.val:
        meter.update(torch.full_like(mask, int(pixels[:-1].argmax())), mask)
    return meter.scores().miou


if __name__ == "__main__":
    main()
