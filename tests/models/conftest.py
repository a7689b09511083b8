"""The library spandrel, also beside a PyTorch without CUDA."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session")
def spandrel() -> Iterator[ModuleType]:
    """The library; the test is skipped where it is not installed.

    PyPI's torchvision has its operators for CUDA builds only. Two of their schemas are enough for its import.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")  # holds them as long as it lives
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("spandrel")
