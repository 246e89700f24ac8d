#!/usr/bin/env bash
# A method on FreiHAND: prepare, train. CMR-SG unless another option file is named (options/freihand_cmr_pg.yaml, ...).
# NPROC=1 ./scripts/train_freihand.sh [option file, default options/freihand_cmr_sg.yaml] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
learn options/freihand_cmr_sg.yaml "$@"
