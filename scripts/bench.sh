#!/usr/bin/env bash
# Run the benchmarks: each prints a ratio against an opponent in the same run, or a rate. Without the tests' shape checks.
# Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
exec .venv/bin/python -m pytest -o addopts="" --confcutdir tests/benchmarks -q -s --benchmark-enable --benchmark-columns=min,median,rounds \
    --benchmark-sort=name tests/benchmarks "$@"
