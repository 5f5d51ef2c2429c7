#!/bin/sh
# Make .venv if there is no usable one, and install the project with one extra if that is not done.
# usage: scripts/install.sh EXTRA
set -eu
cd "$(dirname "$0")/.."
extra=$1
venv=.venv
stamp=$venv/.installed-$extra

# What is wrong with .venv; nothing if it can be used. One made by uv has no pip yet.
fault() {
    if ! version=$("$venv/bin/python" -c '
import sys
print("%d.%d" % sys.version_info[:2])
sys.exit(sys.version_info < (3, 12))
' 2>/dev/null); then
        echo "${version:+has Python }${version:-does not work}"
    elif ! { "$venv/bin/python" -c 'import pip' || "$venv/bin/python" -m ensurepip; } \
        >/dev/null 2>&1; then
        echo "has no pip"
    fi
}

# What an installation depends on. The folder counts: an editable install holds its path.
state() {
    pwd
    grep '^__version__' langevin_ppl/__init__.py
    cat pyproject.toml
}

make_venv() {
    python=$(sh scripts/find_python.sh) || exit 1
    if [ -n "$1" ]; then
        echo ".venv $1: making it again with $python" >&2
        rm -rf "$venv"
    fi
    "$python" -m venv "$venv"
}

if [ -e "$venv" ] || [ -L "$venv" ]; then
    reason=$(fault)
    [ -z "$reason" ] || make_venv "$reason"
else
    make_venv ""
fi

if ! state | cmp -s - "$stamp"; then
    echo "Installing langevin-ppl[$extra] into .venv; the first time takes a minute or two." >&2
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -e ".[$extra]"
    state >"$stamp"
fi
