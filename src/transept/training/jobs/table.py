"""Tasks and the jobs that train them."""

from transept.training.jobs.classification import ClassifyJob
from transept.training.jobs.detection import DetectJob
from transept.training.jobs.job import Job
from transept.training.jobs.pretraining import PretrainJob, PretrainModule
from transept.training.jobs.segmentation import SegmentJob
from transept.training.loop.module import TaskModule

JOBS: dict[str, type[Job]] = {
    "classify": ClassifyJob,
    "detect": DetectJob,
    "segment": SegmentJob,
    "pretrain": PretrainJob,
}
MODULES: dict[str, type[TaskModule]] = {"pretrain": PretrainModule}
"""Modules that Lightning trains in the place of a plain `TaskModule`."""
