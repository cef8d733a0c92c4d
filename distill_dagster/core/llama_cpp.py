"""llama.cpp's HTTP server from the package xllamacpp: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from distill_dagster.core.errors import ModelError
from distill_dagster.core.limits import count_cores
from distill_dagster.core.openmp import limit_openmp_spin

_START_S = 300
"""The longest start. A large file has to be read from disk."""
_STOP_S = 10


@dataclass(frozen=True)
class LlamaServerSettings:
    """How a GGUF file is served, on a free loopback port and on the CPU.

    Each of the `slots` answers one request at a time, has a prompt cache of its own and room for `slot_tokens` tokens.
    `threads` is by default OMP_NUM_THREADS, or one per core.
    """

    gguf: str
    slots: int
    slot_tokens: int
    alias: str
    key: str
    threads: int | None = None


def start_llama_server(settings: LlamaServerSettings) -> Any:
    """Start the server in this process. It stops when the returned object, `xllamacpp.Server`, is dropped.

    Raises:
        ImportError: xllamacpp is not installed.
        RuntimeError: the file cannot be loaded.
    """
    limit_openmp_spin()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings.gguf
    params.model_alias = {settings.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings.key]
    params.n_parallel = settings.slots
    params.n_ctx = settings.slot_tokens * settings.slots
    threads = settings.threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or count_cores()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    # On the CPU, llama.cpp is a third faster without flash attention on prompts of a thousand tokens.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.ui = False
    params.verbosity = -1
    return xllamacpp.Server(params)


class LlamaProcess:
    """The server in a process of its own, which ends with this one, whatever ends it."""

    def __init__(self, gguf: Path, slots: int, slot_tokens: int, alias: str, threads: int | None = None) -> None:
        self.key = secrets.token_urlsafe(32)
        self._settings = LlamaServerSettings(str(gguf), slots, slot_tokens, alias, self.key, threads)
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None
        self.address = ""
        """`http://127.0.0.1:port`, without a slash at the end."""

    def start(self) -> None:
        """Start the process and wait until the model is loaded.

        Raises:
            ModelError: xllamacpp is not installed, or the file cannot be loaded.
        """
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `stop`)
        command = [sys.executable, "-m", "distill_dagster.core.llama_cpp"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A start that hangs ends with its process, and then reading ends too.
        watch = threading.Timer(_START_S, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps(asdict(self._settings)) + "\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        except OSError:
            said = ""
        finally:
            watch.cancel()
        reply = json.loads(said) if said else {"error": self._read_last_line()}
        if "address" not in reply:
            self.stop()
            raise ModelError(f"llama.cpp's server did not start with {self._settings.gguf}: {reply['error']}")
        self.address = reply["address"]

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The id of the process, or None if it was not started."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End the process. Does nothing if it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # what was not read by a process that has ended
            process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        if self._log is not None:
            self._log.close()

    def _read_last_line(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "its process ended."


def _main() -> None:
    """Serve until standard input is closed. Reads the settings from its first line; prints the address or an error."""
    # Ctrl-C reaches all processes of a terminal. The parent answers what is under way, then closes standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = LlamaServerSettings(**json.loads(sys.stdin.readline()))
    try:
        server = start_llama_server(settings)
    except (ImportError, RuntimeError) as error:
        print(json.dumps({"error": str(error) or type(error).__name__}), flush=True)
        return
    print(json.dumps({"address": server.listening_address}), flush=True)
    sys.stdin.read()
    # Destructors of llama.cpp would wait for requests.
    os._exit(0)


if __name__ == "__main__":
    _main()
