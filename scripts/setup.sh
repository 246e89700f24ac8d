#!/usr/bin/env bash
# Create .venv and install requirements.txt into it. Does nothing, at once, when nothing changed.
# PYTHON=/path/to/python3.12 chooses the interpreter; otherwise the first Python 3.12 or 3.11 found is taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fits() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || { echo "setup: PYTHON=$PYTHON is not a working Python 3.11 or 3.12; point it at one" >&2; exit 2; }
else
    for candidate in python3.12 python3.11 python3 python; do
        if fits "$candidate"; then PYTHON=$candidate; break; fi
    done
    [ -n "${PYTHON:-}" ] || { echo "setup: no Python 3.11 or 3.12 on PATH; install one, or set PYTHON=/path/to/python3.12" >&2; exit 2; }
fi

# The stamp names what was installed, so a changed requirements.txt or a broken environment installs again.
want="$(cksum < requirements.txt)"
if [ -f .venv/installed ] && [ "$(cat .venv/installed)" = "$want" ] && fits .venv/bin/python; then
    exit 0
fi
# Two scripts started together must not install into one environment: the second waits.
exec 9> .setup.lock
flock 9
if [ -f .venv/installed ] && [ "$(cat .venv/installed)" = "$want" ] && fits .venv/bin/python; then
    exit 0
fi
fits .venv/bin/python || { rm -rf .venv; "$PYTHON" -m venv .venv; }
echo "setup: installing requirements.txt into .venv with $(.venv/bin/python --version) (several GB, once) ..." >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
echo "$want" > .venv/installed
echo "setup: done" >&2
