"""Random numbers that depend on the step of a run alone."""

import random

import numpy as np
import torch


def seed_all(seed: int, step: int, rank: int = 0) -> None:
    """All three global generators: third-party layers and mixing may draw from any."""
    mixed = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
