#!/usr/bin/env bash
# Set up what is needed and run the tests: style, then pytest on every core. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1  # one worker per core; more threads only fight
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-auto}" --dist worksteal "$@"
