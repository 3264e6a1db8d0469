#!/usr/bin/env bash
# Install what Colab lacks, and leave its torch, torchvision and widgets as they are.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
constraints=$(mktemp)
python3 -c 'from importlib.metadata import version
for name in ("torch", "torchvision", "ipywidgets"):
    print(f"{name}=={version(name)}")' >"$constraints"
python3 -m pip install --quiet "setuptools>=77" wheel
SAM2_BUILD_CUDA=0 python3 -m pip install --quiet --no-build-isolation --constraint "$constraints" --editable "$project"
