#!/usr/bin/env bash
# Controlled comparison of all methods, on synthetic DexYCB S1 and synthetic FreiHAND, from nothing to two tables
# (out/compare/<dataset>/report.html). Same crops, backbone, schedule. Two hours on two CPU cores; goes on where it was when stopped.
# ./scripts/compare.sh [dex_ycb|freihand] [key=value ...]: one of the two
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OUT=out/compare
case "${1:-}" in
    dex_ycb|freihand) sets=("$1"); shift ;;
    *=*|"") sets=(dex_ycb freihand) ;;
    *) echo "compare.sh: '$1': expected dex_ycb, freihand or key=value" >&2; exit 2 ;;
esac
METHODS=(baseline cmr_sg cmr_pg cmr_g boukhayma)

for set in "${sets[@]}"; do
    if [ "$set" = dex_ycb ]; then
        run synth options/quickstart_synth.yaml
        scored() { run test "$@" dataset.sequences=odd; }  # the recordings that calibrate nobody
    else
        run synth options/home_freihand_synth.yaml
        scored() { run test "$@"; }
    fi
    run prepare "options/compare_${set}_cmr_sg.yaml"
    for method in "${METHODS[@]}"; do
        run train "options/compare_${set}_$method.yaml" "$@"
        scored "options/compare_${set}_$method.yaml" "$@"
    done
    if [ "$set" = dex_ycb ]; then  # whose hand: told the truth, and told what 20 pictures of the person say
        run train options/compare_dex_ycb_given.yaml "$@"
        scored options/compare_dex_ycb_given.yaml "$@"
        run test options/compare_dex_ycb_calibrate.yaml "$@"
        run calibrate options/compare_dex_ycb_calibrate.yaml "$@"
        scored options/compare_dex_ycb_given.yaml test.tag=calibrated "test.identity=$OUT/dex_ycb/identities" "$@"
    fi
    run report "options/compare_${set}_report.yaml" "$@"
done
