"""Find the runtime of an export of a release."""

from __future__ import annotations

from pathlib import Path

from distill_dagster.core.errors import DistillError
from distill_dagster.release.runtimes.types import SERVABLE_EXPORTS, Runtime, StudentSetup


def list_servable(release: Path) -> list[str]:
    """The exports in a release that a runtime answers from. The first is the one that is served by default."""
    return [name for name, path in SERVABLE_EXPORTS.items() if (release / path).exists()]


def build_runtime(release: Path, setup: StudentSetup, name: str) -> Runtime:
    """The runtime of an export, not yet open.

    Raises:
        DistillError: the release has no such export.
    """
    servable = list_servable(release)
    if name not in servable:
        known = f"Use one of {', '.join(servable)}." if servable else "Release the student again."
        raise DistillError(f"{release} has no export {name!r} that can be served. {known}")
    path = release / SERVABLE_EXPORTS[name]
    if name.startswith("onnx"):
        from distill_dagster.release.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(path, setup, name)
    if name.startswith("gguf"):
        from distill_dagster.release.runtimes.llama_server import LlamaServerRuntime

        return LlamaServerRuntime(path, setup, name)
    from distill_dagster.release.runtimes.adapter import AdapterRuntime

    return AdapterRuntime(path, setup, name)
