#!/usr/bin/env bash
# The shape-given model on HO3D: told the true shape in training.
# NPROC=4 ./scripts/train_ho3d_mano_based_our_model_with_gt_shape.sh [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run prepare options/ho3d_given.yaml "$@"
run train options/ho3d_given.yaml "$@"
