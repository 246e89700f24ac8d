#!/usr/bin/env bash
# Identity-aware model on S1 test, told the calibrated shapes (run calibrate_dex_ycb.sh first). The sequences that
# calibrated are not scored. ./scripts/eval_dex_ycb_ours_calibrated_hand_shape.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run test options/dex_ycb_eval_calibrated.yaml dataset.sequences=odd "$@"
