#!/usr/bin/env bash
# A trained method on FreiHAND's evaluation: predictions, the server's json (out/<name>/<experiment>.json) and its zip (pred.zip), and,
# where the public labels are in dataset.root, the official scores. Pictures of 20 samples: test.plots=20.
# ./scripts/eval_freihand.sh [option file, default options/freihand_cmr_sg.yaml] [key=value ...]; COUNT=500 for a smaller evaluation
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
choose options/freihand_cmr_sg.yaml "$@"
folder=$(option o.folder)
evaluate freihand options/freihand_cmr_sg.yaml "$@"
run export freihand "$folder/$(option o.test.tag)/predictions.npz" --out "$folder/${folder##*/}.json"
