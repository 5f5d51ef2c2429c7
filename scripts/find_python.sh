#!/bin/sh
# Print the path of a Python >= 3.12 that can make virtual environments.
# PYTHON, if set, is the only candidate. Each candidate has to run: a pyenv shim may exist and fail.
set -u

need="Python 3.12 or newer with its venv module"

accept() {
    # Not sys.executable: in an activated .venv that would be the environment about to be rebuilt.
    found=$("$1" -c '
import sys, venv, ensurepip
if sys.version_info < (3, 12):
    sys.exit(1)
print(sys._base_executable)
' 2>/dev/null) && [ -x "$found" ] && printf '%s\n' "$found"
}

if [ -n "${PYTHON:-}" ]; then
    accept "$PYTHON" && exit 0
    echo "PYTHON=$PYTHON is not a working $need: name another, or unset PYTHON to search for one." >&2
    exit 1
fi

for candidate in python3.12 python3.13 python3.14 python3.15 python3 python \
    "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[2-9]*/bin/python; do
    accept "$candidate" && exit 0
done

candidate=$(uv python find --system '>=3.12' 2>/dev/null) && accept "$candidate" && exit 0

echo "langevin_ppl needs $need and found none: install one (python.org/downloads, 'apt install python3.12-venv', 'brew install python@3.12' or 'uv python install 3.12'), or name yours with PYTHON=/path/to/python." >&2
exit 1
