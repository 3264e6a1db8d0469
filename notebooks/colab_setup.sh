#!/usr/bin/env bash
# Install what Colab or Kaggle lacks, and leave every package that is there, even one loaded in the kernel, as it is.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
constraints=$(mktemp)
python3 -m pip list --format=freeze >"$constraints"
SAM2_BUILD_CUDA=0 python3 -m pip install --quiet --no-build-isolation --constraint "$constraints" --editable "$project"
