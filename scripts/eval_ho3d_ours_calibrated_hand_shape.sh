#!/usr/bin/env bash
# Identity-aware model on HO3D's evaluation, told the calibrated shapes (run calibrate_ho3d.sh first), and the baseline on the same frames.
# ./scripts/eval_ho3d_ours_calibrated_hand_shape.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run test options/ho3d_eval_calibrated.yaml "$@"
run test options/ho3d_baseline.yaml dataset.sequences='["MPM1[234]", "AP1[234]", SB13, SM1]' test.tag=test_same_frames "$@"
