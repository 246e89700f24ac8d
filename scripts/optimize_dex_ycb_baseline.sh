#!/usr/bin/env bash
# Baseline on S1 test, fitted to the 2D detector's joints with its predicted shape held.
# Predicts first where that was not done: meshes, then 2D joints. ./scripts/optimize_dex_ycb_baseline.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ -f out/dex_ycb_baseline/test/predictions.npz ] || run test options/dex_ycb_eval_baseline.yaml
[ -f out/dex_ycb_2d_pose/test/predictions.npz ] || run test options/dex_ycb_2d_pose.yaml test.checkpoint=out/dex_ycb_2d_pose/best.pt
run refine options/dex_ycb_refine_baseline.yaml "$@"
