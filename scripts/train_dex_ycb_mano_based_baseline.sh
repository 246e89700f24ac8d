#!/usr/bin/env bash
# Baseline of the ECCV 2022 identity-aware models: MANO regression, shape predicted. DexYCB S1, right hands.
# NPROC=4 ./scripts/train_dex_ycb_mano_based_baseline.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run prepare options/dex_ycb_baseline.yaml "$@"
run train options/dex_ycb_baseline.yaml "$@"
