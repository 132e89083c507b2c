"""A classifier that is exported in a second."""

from transept.data.classification.transforms import Preprocessing
from transept.models.registry import build_model
from transept.tasks.classify import Classifier


def a_classifier() -> Classifier:
    model = build_model("xcit_nano_12_p16", num_classes=3, depth=1, embed_dim=32, num_heads=2)
    return Classifier(model, ["a", "b", "c"], Preprocessing(img_size=(64, 64))).eval()
