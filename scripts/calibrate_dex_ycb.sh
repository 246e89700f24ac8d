#!/usr/bin/env bash
# Shapes of the unseen people (S1 test: 8 and 9) from the confidence model's predictions: the mean of 20 random images.
# Every other sequence calibrates, the ones in between are scored; the original calibrated on the test images themselves:
# ./scripts/calibrate_dex_ycb.sh dataset.sequences=null   and then   test.sequences as well, see options/dex_ycb_calibrate.yaml
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run test options/dex_ycb_conf.yaml dataset.sequences=even test.tag=calibration test.report=false
run calibrate options/dex_ycb_calibrate.yaml "$@"
