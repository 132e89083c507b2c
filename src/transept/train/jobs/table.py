"""Tasks and the jobs that train them."""

from transept.train.jobs.classification import ClassifyJob
from transept.train.jobs.detection import DetectJob
from transept.train.jobs.job import Job
from transept.train.jobs.pretraining import PretrainJob, PretrainModule
from transept.train.jobs.segmentation import SegmentJob
from transept.train.loop.module import TaskModule

JOBS: dict[str, type[Job]] = {
    "classify": ClassifyJob,
    "detect": DetectJob,
    "segment": SegmentJob,
    "pretrain": PretrainJob,
}
MODULES: dict[str, type[TaskModule]] = {"pretrain": PretrainModule}
"""Modules that Lightning trains in the place of a plain `TaskModule`."""
