#!/bin/sh
# usage: scripts/install.sh VENV ARGUMENT...    (arguments of `pip install`)
#
# Makes the virtual environment VENV and installs into it: by uv, which pip brings to
# .uv/ where it is not on the path, and by pip where uv cannot (uv does not read pip's
# configuration, so it sees no mirror that is named only there).
set -eu
venv=$1
shift
python=${PYTHON:-python3}

uv=$(command -v uv) || {
    uv=.uv/bin/uv
    [ -x $uv ] || "$python" -m pip install --quiet --disable-pip-version-check \
        --target .uv uv || echo "pip brings no uv" >&2
}

if "$uv" venv --quiet --seed --allow-existing --python "$python" "$venv" &&
    "$uv" pip install --python "$venv/bin/python" --compile-bytecode "$@"; then
    exit
fi
echo "uv did not install; pip does" >&2
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
"$venv/bin/python" -m pip install --quiet "$@"
