#!/usr/bin/env bash
# Official scores at home, on synthetic FreiHAND and HO3D, from nothing: write the datasets, train the baseline for minutes, test,
# export a submission, score it as the official programs do. `test` and `score` must say the same. Goes on where it was when stopped.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OUT=out/home

home() {  # home <dataset> <protocol>: all stages of one dataset
    local options=options/home_$1_baseline.yaml run=$OUT/$1_baseline
    run synth "options/home_$1_synth.yaml"
    run prepare "$options"
    run train "$options"
    run test "$options"
    run export "$2" "$run/test/predictions.npz" --out "$run/pred.zip"
    run score "$2" --pred "$run/pred.zip" --truth "$OUT/$1" --out "$run/official" \
        --count "$("$PY" -c "import json, sys; print(len(json.load(open(sys.argv[1]))))" "$OUT/$1/evaluation_xyz.json")"
}

home freihand freihand
home ho3d ho3d_v2

# What HO3D allows of identity: shapes of its evaluation's people from recordings 1 to 3; 4 to 6 are scored, told them or not.
run train options/home_ho3d_given.yaml
run test options/home_ho3d_calibrate.yaml
run calibrate options/home_ho3d_calibrate.yaml
run test options/home_ho3d_calibrated.yaml
run test options/home_ho3d_baseline.yaml dataset.sequences='["AP[456]?", "MPM[456]?", "SB[456]?"]' test.tag=same_frames
