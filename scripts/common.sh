# Sourced by the recipes: goes to the project's root, sets up, and defines `run`.
# NPROC=4 ./scripts/train_x.sh starts four processes on this machine; MASTER_* and NNODES/NODE_RANK as torchrun knows them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
PY=.venv/bin/python

run() {  # run <command> <option file> [key=value ...]
    if [ "$1" = train ] && [ "${NPROC:-1}" != 1 ]; then
        local rendezvous=(--standalone)
        if [ "${NNODES:-1}" != 1 ]; then
            rendezvous=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?}" --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}")
        fi
        "$PY" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$NPROC" run.py "$@"
    else
        "$PY" run.py "$@"
    fi
}

choose() {  # choose <default option file> [option file] [key=value ...]: sets options, and rest (an array)
    options=$1
    shift
    case "${1:-}" in *.yaml) options=$1; shift ;; esac
    rest=("$@")
}

option() {  # option <python expression of the options o>: its value, for the chosen option file
    "$PY" -c "import sys; from options.load import load; o = load(sys.argv[1], sys.argv[3:]); print(eval(sys.argv[2]))" "$options" "$1" \
        ${rest[@]+"${rest[@]}"}
}

learn() {  # learn <default option file> [option file] [key=value ...]: prepare, train
    choose "$@"
    run prepare "$options" ${rest[@]+"${rest[@]}"}
    run train "$options" ${rest[@]+"${rest[@]}"}
}

evaluate() {  # evaluate <protocol> <default option file> [option file] [key=value ...]: test, export, score by dataset.root's labels
    # COUNT=500: an evaluation of another length than the official one · JSON=1: also the json beside its zip
    local protocol=$1 told name truth tag
    case "${COUNT:-1}" in *[!0-9]*) echo "COUNT=$COUNT: expected how many samples the evaluation has, or nothing" >&2; exit 2 ;; esac
    choose "${@:2}"
    told=$(option '"\n".join(map(str, (o.folder, o.test.tag, o.dataset.root)))')
    { read -r name; read -r tag; read -r truth; } <<< "$told"
    run prepare "$options" ${rest[@]+"${rest[@]}"}
    run test "$options" ${rest[@]+"${rest[@]}"}
    [ -z "${JSON:-}" ] || run export "$protocol" "$name/$tag/predictions.npz" --out "$name/${name##*/}.json"
    run export "$protocol" "$name/$tag/predictions.npz" --out "$name/pred.zip"
    run score "$protocol" --pred "$name/pred.zip" --truth "$truth" --out "$name/official" ${COUNT:+--count "$COUNT"}
}
