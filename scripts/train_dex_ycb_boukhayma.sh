#!/usr/bin/env bash
# Boukhayma's network on DexYCB S1, as compared in the ECCV 2022 paper of the identity-aware models: prepare, train.
# NPROC=1 ./scripts/train_dex_ycb_boukhayma.sh [option file, default options/dex_ycb_boukhayma.yaml] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
learn options/dex_ycb_boukhayma.yaml "$@"
