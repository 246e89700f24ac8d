#!/usr/bin/env bash
# CMR-PG without silhouette on S1 test. ./scripts/eval_dex_ycb_cmr.sh [option file, default options/dex_ycb_cmr.yaml] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
choose options/dex_ycb_cmr.yaml "$@"
run test "$options" ${rest[@]+"${rest[@]}"}
