#!/usr/bin/env bash
# Lint and the whole test suite, end-to-end runs included, in the project's own environment.
#   bash scripts/test.sh                                                        the default pins
#   TORCH_PINS="torch==2.7.1 torchvision==0.22.1" bash scripts/test.sh          the P40 pins
#   bash scripts/test.sh tests/losses -x                                        a part of it: words go to pytest
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check --quiet . || { echo "error: not formatted; run: ruff format ." >&2; exit 1; }
python -m pytest "$@"
