#!/usr/bin/env bash
# A trained method on FreiHAND's evaluation: predictions, the submission pred.zip, and, where the public labels are in dataset.root,
# its official scores. ./scripts/eval_freihand.sh [option file, default options/freihand_baseline.yaml] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
evaluate freihand options/freihand_baseline.yaml "$@"
