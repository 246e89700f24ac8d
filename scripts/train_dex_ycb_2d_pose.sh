#!/usr/bin/env bash
# 2D detector of the ECCV 2022 identity-aware models: heat maps in three stages. DexYCB S1, right hands.
# NPROC=1 ./scripts/train_dex_ycb_2d_pose.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run prepare options/dex_ycb_2d_pose.yaml "$@"
run train options/dex_ycb_2d_pose.yaml "$@"
