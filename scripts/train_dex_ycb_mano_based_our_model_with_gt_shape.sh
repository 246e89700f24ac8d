#!/usr/bin/env bash
# Identity-aware model: the person's true shape is given. DexYCB S1, right hands.
# NPROC=4 ./scripts/train_dex_ycb_mano_based_our_model_with_gt_shape.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run prepare options/dex_ycb_given.yaml "$@"
run train options/dex_ycb_given.yaml "$@"
