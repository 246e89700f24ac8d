#!/usr/bin/env bash
# Baseline on S1 test. ./scripts/eval_dex_ycb_mano_based_baseline.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run test options/dex_ycb_eval_baseline.yaml "$@"
