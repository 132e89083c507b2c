"""What pretraining must beat on small data: nearest neighbours of the pixels, and of the same backbone untrained.

Both with the classifier, the split and the preprocessing of `transept eval RUN --knn`. Usage:

    uv run python benchmarks/pixels_knn.py quick-dino
    uv run python benchmarks/pixels_knn.py quick-dino --data FOLDER --model.img_size 64
"""

import argparse
import json

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from transept.data.classification.transforms import eval_transform
from transept.data.loading import TransformedSet, make_loader
from transept.metrics.knn import KNNMeter, NearestNeighbours
from transept.training.jobs.pretraining import PretrainJob
from transept.training.options.pages import read_recipe
from transept.training.options.parsing import parse_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    args, options = parser.parse_known_args()
    recipe = parse_recipe(read_recipe(args.recipe), options)
    job = PretrainJob(recipe)
    torch.manual_seed(recipe.seed)
    task = job.build(load=False).eval()
    transform = eval_transform(task.preprocessing)
    train, val = (make_loader(TransformedSet(half, transform), 64) for half in (job.splits.train, job.splits.val))
    for name, extract in (("pixels", nn.Flatten()), ("untrained", task.features)):
        for k in (1, recipe.pretrain.knn_k):
            features, labels = _of(extract, train)
            neighbours = NearestNeighbours(
                features, labels, len(job.splits.classes), k=k, temperature=recipe.pretrain.knn_temperature
            )
            queries, answers = _of(extract, val)
            votes, meter = neighbours(queries), KNNMeter()
            meter.update(votes.new_zeros(()), votes, answers)
            print(json.dumps({"features": name, "data": recipe.data, "k": k, "knn_top1": meter.means()["knn_top1"]}))


@torch.inference_mode()
def _of(extract: nn.Module, loader: DataLoader) -> tuple[Tensor, Tensor]:
    features, labels = zip(*((extract(images), labels) for images, labels in loader), strict=True)
    return torch.cat(features), torch.cat(labels)


if __name__ == "__main__":
    main()
