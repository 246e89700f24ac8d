#!/usr/bin/env bash
# Identity-aware model on S1 test, told the true shape. ./scripts/eval_dex_ycb_ours_gt_hand_shape.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run test options/dex_ycb_eval_given.yaml "$@"
