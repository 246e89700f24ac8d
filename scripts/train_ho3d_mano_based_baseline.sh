#!/usr/bin/env bash
# The identity-aware models' baseline (shape regressed) on HO3D. dataset.version=v3 takes the larger version.
# NPROC=4 ./scripts/train_ho3d_mano_based_baseline.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run prepare options/ho3d_baseline.yaml "$@"
run train options/ho3d_baseline.yaml "$@"
