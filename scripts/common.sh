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

evaluate() {  # evaluate <protocol> <default option file> [option file] [key=value ...]: test, export, score by dataset.root's labels
    local protocol=$1 options=$2 found name truth
    shift 2
    case "${1:-}" in *.yaml) options=$1; shift ;; esac
    found=$("$PY" -c "import sys; from options.load import load; o = load(sys.argv[1], sys.argv[2:]); print(o.folder, o.dataset.root, sep='\n')" \
        "$options" "$@")
    name=${found%%$'\n'*} truth=${found##*$'\n'}
    run prepare "$options" "$@"
    run test "$options" "$@"
    run export "$protocol" "$name/test/predictions.npz" --out "$name/pred.zip"
    run score "$protocol" --pred "$name/pred.zip" --truth "$truth" --out "$name/official"
}
