#!/usr/bin/env bash
# Second stage: the confidence branch on the frozen baseline. Needs the baseline's last.pt.
# ./scripts/train_dex_ycb_mano_based_conf_branch.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run prepare options/dex_ycb_conf.yaml "$@"
run train options/dex_ycb_conf.yaml "$@"
