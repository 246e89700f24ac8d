#!/usr/bin/env bash
# Shapes of the people in HO3D's evaluation from the baseline's predictions: two cameras of each recording calibrate, the others are
# scored. SM1 has one camera, so its person is calibrated from the training recordings; both put
# their identity files into one folder (calibration.json there is of the last). ./scripts/calibrate_ho3d.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run test options/ho3d_calibrate.yaml "$@"
run calibrate options/ho3d_calibrate.yaml "$@"
SM=(dataset.sequences="[SM2, SM3, SM4, SM5]" test.split=train test.tag=calibration_SM
    calibrate.predictions=out/ho3d_baseline/calibration_SM/predictions.npz)
run test options/ho3d_calibrate.yaml "${SM[@]}" "$@"
run calibrate options/ho3d_calibrate.yaml "${SM[@]}" "$@"
