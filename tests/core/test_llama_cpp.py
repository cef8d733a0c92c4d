"""llama.cpp's server in a process of its own: it answers with its key, and it never outlives what started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest

from distill_dagster.core.errors import ModelError
from distill_dagster.core.llama_cpp import LlamaProcess
from distill_dagster.core.models import EMBEDDED_MODEL, PACKAGED_MODELS
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")


@pytest.fixture(scope="module")
def gguf() -> Path:
    packaged = PACKAGED_MODELS[EMBEDDED_MODEL]
    spec = find_spec(packaged.package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / packaged.weights


def test_it_answers_with_its_key_until_it_is_stopped(gguf: Path) -> None:
    process = LlamaProcess(gguf, 1, 256, "student", threads=1)
    assert not process.is_alive()
    process.start()
    assert process.is_alive()
    asked = {"content": "a"}
    assert httpx.post(f"{process.address}/tokenize", json=asked).status_code == 401
    key = {"Authorization": f"Bearer {process.key}"}
    assert httpx.post(f"{process.address}/tokenize", json=asked, headers=key).json() == {"tokens": [81]}
    process.stop()
    assert not process.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{process.address}/health")
    process.stop()


def test_it_ends_with_a_process_that_is_killed(gguf: Path) -> None:
    starter = (
        "import sys, time; from pathlib import Path; from distill_dagster.core.llama_cpp import LlamaProcess;"
        "p = LlamaProcess(Path(sys.argv[1]), 1, 256, 'student', 1); p.start(); print(p.pid, flush=True);"
        "time.sleep(3600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter, str(gguf)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    server.wait(timeout=HANG_S)
    parent.stdout.close()


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_text(json.dumps({"no": "model"}), encoding="utf-8")
    process = LlamaProcess(file, 1, 256, "student", threads=1)
    with pytest.raises(ModelError, match=r"did not start with .*model\.gguf"):
        process.start()
    assert not process.is_alive()
