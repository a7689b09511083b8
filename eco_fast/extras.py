"""The optional parts: what each is for, its packages, and how to get them. The same as in `pyproject.toml`."""

from importlib import metadata
from typing import NamedTuple


class Extra(NamedTuple):
    """An optional part."""

    purpose: str
    requirements: tuple[str, ...]


EXTRAS = {
    "dali": Extra("decodes images faster; data.source=files", ("nvidia-dali-cuda130>=2.0",)),
    "demo": Extra("the demo's photographs", ("scikit-image>=0.24",)),
    "onnx": Extra("export to ONNX", ("onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20")),
    "spandrel": Extra("more networks", ("spandrel>=0.4.2,<0.5",)),
    "tensorboard": Extra("run.tensorboard", ("tensorboard>=2.16",)),
    "dev": Extra(
        "tests, benchmarks and lint",
        (
            "pytest>=8",
            "pytest-benchmark>=5.1",
            "mypy>=1.14",
            "ruff>=0.9",
            "scikit-image>=0.24",
            "tensorboard>=2.16",
            "triton>=3.6",
        ),
    ),
}


def install(extra: str) -> str:
    """The command that installs an extra's packages, by their own names: it works wherever this package came from."""
    return f"pip install {' '.join(_argument(requirement) for requirement in EXTRAS[extra].requirements)}"


def versions(extra: str) -> dict[str, str | None]:
    """The installed version of each of an extra's packages, None where one is missing; nothing is imported."""
    return {name: version(name) for name in map(_name, EXTRAS[extra].requirements)}


def version(package: str) -> str | None:
    """The installed version of a package, None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _name(requirement: str) -> str:
    return requirement.partition(">=")[0]


def _argument(requirement: str) -> str:
    """What pip is told: the bare name is enough where any newer version will do."""
    return f'"{requirement}"' if "<" in requirement else _name(requirement)
