#!/usr/bin/env bash
# The identity-aware models' baseline (shape regressed) on FreiHAND.
# NPROC=4 ./scripts/train_freihand_mano_based_baseline.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run prepare options/freihand_baseline.yaml "$@"
run train options/freihand_baseline.yaml "$@"
