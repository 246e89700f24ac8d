#!/usr/bin/env bash
# The page "Whose hand" of README.md, from nothing: 160 synthetic people, three arms, a 2D network, calibration, positions in the
# camera, refinement. Some two hours on four CPU cores; stopped or killed, the trainings go on where they were.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OUT=out/identity
KEYPOINTS=$OUT/pose2d/scored/predictions.npz
SCORED="dataset.sequences=odd test.frames=3000 test.report=false"
REFINE="refine.keypoints=$KEYPOINTS refine.root_prior=0.05 refine.report=false name=identity/refine"

run synth options/identity_synth.yaml
run prepare options/identity.yaml
for arm in start baseline given_layer given_heads pose2d_start pose2d; do
    run train options/identity_$arm.yaml
done

# Shapes of the 60 unseen people: by the posterior, by calibrated views, by one RGB-D picture.
run test options/identity_baseline.yaml test.split=val test.tag=val test.frames=6000 test.report=false
run test options/identity_calibrate.yaml
run test options/identity_pose2d.yaml dataset.sequences=even test.tag=calibration test.report=false
run test options/identity_pose2d.yaml $SCORED test.tag=scored
run test options/identity_baseline.yaml $SCORED test.tag=scored
run calibrate options/identity_calibrate.yaml
run calibrate options/identity_calibrate.yaml calibrate.method=views calibrate.validation=null \
    calibrate.keypoints=$OUT/pose2d/calibration/predictions.npz calibrate.out=$OUT/identities_views calibrate.draws=1 'calibrate.curve_n=[20]'
run synth options/identity_rgbd_synth.yaml
run prepare options/identity_rgbd.yaml
RGBD="dataset.root=$OUT/rgbd dataset.prepared=$OUT/rgbd_prepared dataset.sequences=even test.tag=rgbd test.report=false"
run test options/identity_baseline.yaml $RGBD
run test options/identity_pose2d.yaml $RGBD
run calibrate options/identity_calibrate.yaml calibrate.method=depth calibrate.validation=null calibrate.n=1 \
    calibrate.predictions=$OUT/baseline/rgbd/predictions.npz calibrate.keypoints=$OUT/pose2d/rgbd/predictions.npz \
    calibrate.depth_root=$OUT/rgbd calibrate.out=$OUT/identities_depth calibrate.draws=1 'calibrate.curve_n=[1]'

# Positions in the camera under the three protocols, and the ablation: each arm, each source of shape, with and without refinement.
run test options/identity_baseline.yaml $SCORED test.tag=scored test.keypoints=$KEYPOINTS test.camera_identity=$OUT/identities
for shape in predicted truth $OUT/identities $OUT/identities_views $OUT/identities_depth; do
    run refine $REFINE refine.predictions=$OUT/baseline/scored/predictions.npz refine.shape="$shape" refine.tag="baseline_$(basename "$shape")"
done
for arm in given_layer given_heads; do
    for told in truth identities; do
        identity=truth
        [ $told = identities ] && identity=$OUT/identities
        run test options/identity_$arm.yaml $SCORED test.tag=$told test.keypoints=$KEYPOINTS test.identity="$identity"
        run refine $REFINE refine.predictions=$OUT/$arm/$told/predictions.npz refine.shape=told refine.tag=${arm}_$told
    done
done
run report options/identity_report.yaml
