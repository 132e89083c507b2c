"""Tasks and the jobs that train them."""

from transept.training.jobs.classification import ClassifyJob
from transept.training.jobs.detection import DetectJob
from transept.training.jobs.job import Job
from transept.training.jobs.pretraining import PretrainJob
from transept.training.jobs.segmentation import SegmentJob

JOBS: dict[str, type[Job]] = {
    "classify": ClassifyJob,
    "detect": DetectJob,
    "segment": SegmentJob,
    "pretrain": PretrainJob,
}
