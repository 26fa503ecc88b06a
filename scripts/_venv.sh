# shellcheck shell=bash
# Sourced by the scripts beside it: goes to the root of the checkout and makes .venv ready. Never deletes a .venv.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

# require_python PYTHON: ends the script unless PYTHON is at least 3.11.
require_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "expected Python 3.11 or newer, got $1 = $("$1" --version 2>&1 || true); name another one: PYTHON=python3.12 $0"
}

make_venv() {
    local python=${PYTHON:-python3}
    require_python "$python"
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv ||
        fail "'$python -m venv .venv' did not succeed (on Debian and Ubuntu it needs the package python3-venv);" \
            "remove the unfinished .venv, then run $0 again"
}

# ensure_installed REQUIREMENT: "." or ".[dev]"; installs when there is something new since the last time.
ensure_installed() {
    [ -e .venv ] || make_venv
    .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        fail ".venv has no working pip; move it out of the way, then run $0 again"
    require_python .venv/bin/python
    local stamp=.venv/.amc-search-installed wanted
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if [ -e "$stamp" ] && { grep -qxF "$1 $wanted" "$stamp" || grep -qxF ".[dev] $wanted" "$stamp"; }; then
        return
    fi
    echo "Installing $1 into .venv (the first time: some minutes and about 6 GB)"
    .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e "$1"
    echo "$1 $wanted" >"$stamp"
}
