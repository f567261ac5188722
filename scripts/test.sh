#!/usr/bin/env bash
# Lint and every tier of the tests but the slow one, in the project's own environment: 20 to 40 minutes on 2 cores.
#   bash scripts/test.sh                                                        the default pins
#   TORCH_PINS="torch==2.7.1 torchvision==0.22.1" bash scripts/test.sh          the P40 pins
#   bash scripts/test.sh tests/losses -x                                        a part of it: words go to pytest
#   bash scripts/test.sh -m slow                                                simulated studies, many kills
#   .venv/bin/pytest                                                            the unit tier alone, about a minute
# It ends with a list of the skipped tests. With CI=true a skip that an installation would have avoided is a failure.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check --quiet . || { echo "error: not formatted; run: ruff format ." >&2; exit 1; }
python -m pytest -m "not slow" -rs "$@"
