"""The tasks. A further one is one file with a `Task`, and one line here."""

from transept.tasks.classify import Classifier
from transept.tasks.detect import Detector
from transept.tasks.pretrain import FeatureExtractor
from transept.tasks.segment import Segmenter
from transept.tasks.task import Task

TASKS: list[type[Task]] = [Classifier, Detector, Segmenter, FeatureExtractor]
