"""A training step of the product against the same step in plain PyTorch, side by side on the same images.

The two run in alternating blocks, so that a drift of the machine falls on both.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eco_fast.config import parse_config
from eco_fast.data.sampler import Sampler
from eco_fast.data.store import FlatImages, TrainingSet
from eco_fast.eco.objective import blend
from eco_fast.models import build
from eco_fast.train.environment import configure, resolve
from eco_fast.train.step import StudentStep, make_batch

from plain import PlainTrainer

SCALE, PATCH, BATCH = 2, 24, 16
