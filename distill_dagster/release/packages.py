"""The packages of the extra `release`: which are missing, and how to install them."""

from __future__ import annotations

import importlib

from distill_dagster.core.errors import DistillError

RELEASE_REMEDY = "Install the extra `release`: .venv/bin/pip install -c requirements/constraints.txt -e '.[release]'"


def require_packages(what: str, *packages: str) -> None:
    """Check that packages of the extra `release` can be imported.

    Args:
        what: what needs them, as the subject of a sentence: "An ONNX export".

    Raises:
        DistillError: one cannot. The message names the extra to install.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise DistillError(
                f"{what} needs the package {package}, which cannot be imported ({error}). {RELEASE_REMEDY}"
            ) from None
