#!/usr/bin/env bash
# The whole job on synthetic hands, from nothing to a table and out/quickstart/report.html; about 15 minutes on two CPU cores.
# Stopped or killed, it goes on where it was when started again. `rm -r out/quickstart` starts over.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
OUT=out/quickstart
mkdir -p "$OUT"

stage() {  # stage <name> <run.py arguments>: runs it, and notes its seconds, also those of an attempt that was stopped
    local name=$1
    shift
    echo "== $name" >&2
    trap 'echo "'"$name"' $((SECONDS - start))" >> "$OUT/stages.txt"' EXIT
    start=$SECONDS
    run "$@"
    trap - EXIT
    echo "$name $((SECONDS - start))" >> "$OUT/stages.txt"
}

stage synth      synth     options/quickstart_synth.yaml
stage prepare    prepare   options/quickstart.yaml
stage start      train     options/quickstart_start.yaml
stage baseline   train     options/quickstart_baseline.yaml
stage given      train     options/quickstart_given.yaml
stage confidence train     options/quickstart_conf.yaml
# Shapes of the two unseen people: from every other sequence of theirs; the sequences in between are scored.
stage calibrate  test      options/quickstart_calibrate.yaml
stage calibrate  calibrate options/quickstart_calibrate.yaml
stage test       test      options/quickstart_baseline.yaml dataset.sequences=odd
stage test       test      options/quickstart_given.yaml dataset.sequences=odd
stage test       test      options/quickstart_given.yaml dataset.sequences=odd test.tag=calibrated test.identity=$OUT/identities/draws
run report options/quickstart_report.yaml
echo "report: $OUT/report.html" >&2
