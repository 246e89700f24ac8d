#!/usr/bin/env bash
# Boukhayma's network on S1 test. ./scripts/eval_dex_ycb_boukhayma.sh [option file, default options/dex_ycb_boukhayma.yaml] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
choose options/dex_ycb_boukhayma.yaml "$@"
run test "$options" ${rest[@]+"${rest[@]}"}
