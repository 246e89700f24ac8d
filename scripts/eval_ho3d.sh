#!/usr/bin/env bash
# A trained method on HO3D's evaluation: predictions, the submission pred.zip, and, where the public labels are in dataset.root, its
# official scores. VERSION=v3 ./scripts/eval_ho3d.sh [option file, default options/ho3d_baseline.yaml] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
evaluate "ho3d_${VERSION:-v2}" options/ho3d_baseline.yaml "$@" "dataset.version=${VERSION:-v2}"
