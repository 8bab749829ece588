#!/bin/sh
# Makes .venv and installs a locked set of packages into it: `run` for what the gateway needs, `dev` for the tests too.
# `clients` makes .venv-clients for the real clients of the contract tests, which pin what bellmare does not.
# Called by make, which knows from a stamp whether anything is to be done. Needs Python >= 3.11 and nothing else.
set -eu
cd "$(dirname "$0")/.."
set_name=$1
case $set_name in
    run) lock=requirements.lock ;;
    dev) lock=requirements-dev.lock ;;
    clients) lock=tests/contract/clients/requirements.lock ;;
    *) echo "usage: tools/setup.sh run|dev|clients" >&2; exit 2 ;;
esac
place=.venv
if [ "$set_name" = clients ]; then place=.venv-clients; fi

say() { echo "setup: $*" >&2; }

# A name on PATH may be there and not work (pyenv's shims) or lack venv (Debian splits it off), so each is tried.
usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for name in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
        if usable "$name"; then echo "$name"; return; fi
    done
    say "bellmare needs Python 3.11 or newer with the venv module, and found none. On this PATH:"
    for name in python3.13 python3.12 python3.11 python3 python; do
        if version=$("$name" -c 'import sys; print(".".join(map(str, sys.version_info[:3])))' 2>/dev/null); then
            "$name" -c 'import venv, ensurepip' 2>/dev/null || version="$version without venv (Debian, Ubuntu: apt install python3-venv)"
            say "  $name is $version"
        fi
    done
    say "Install one, or name one: make PYTHON=/path/to/python3.12 ..."
    exit 1
}

python=$place/bin/python
if ! $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    base=$(find_python)
    say "[1/3] making $place with $("$base" --version)"
    rm -rf "$place"
    "$base" -m venv "$place"
fi
# uv makes environments without pip.
$python -m pip --version >/dev/null 2>&1 || $python -m ensurepip >/dev/null

quiet=-q
if [ -t 2 ]; then quiet=; fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
say "[2/3] installing $(grep -c '^[A-Za-z0-9].*==' $lock) packages of $lock (a minute or so the first time)"
$python -m pip install $quiet --require-hashes -r $lock
if [ "$set_name" = clients ]; then
    touch $place/.done
    say "done"
    exit 0
fi
say "[3/3] installing bellmare itself"
# The build backend is in the lock: nothing is fetched here.
$python -m pip install -q --no-deps --no-build-isolation -e .
touch .venv/.run
if [ "$set_name" = dev ]; then touch .venv/.dev; fi
say "done"
