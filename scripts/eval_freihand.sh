#!/usr/bin/env bash
# A trained method on FreiHAND's evaluation: predictions, the server's json (out/<name>/<experiment>.json) and its zip (pred.zip), and,
# where the public labels are in dataset.root, the official scores. Pictures of 20 samples: test.plots=20.
# ./scripts/eval_freihand.sh [option file, default options/freihand_cmr_sg.yaml] [key=value ...]; COUNT=500 where the evaluation has
# 500 samples (a synthetic one); leave it out on the real set.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
JSON=1 evaluate freihand options/freihand_cmr_sg.yaml "$@"
