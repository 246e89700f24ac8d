#!/usr/bin/env bash
# Shapes of the unseen people (S1 test: 8 and 9) from the confidence model's predictions: the mean of 20 random images.
# Every other sequence calibrates, and the ones in between are scored. The original calibrated on the test images it then
# scored; to repeat that: ./scripts/calibrate_dex_ycb.sh dataset.sequences=null calibrate.allow_scored_frames=true
#                         ./scripts/eval_dex_ycb_ours_calibrated_hand_shape.sh dataset.sequences=null
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run test options/dex_ycb_calibrate.yaml "$@"
run calibrate options/dex_ycb_calibrate.yaml "$@"
