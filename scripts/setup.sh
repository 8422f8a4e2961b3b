#!/usr/bin/env bash
# Makes .venv with everything in it. Environment: PYTHON (python3), CUDA (1: torch for NVIDIA GPUs, 0: for CPUs; unset:
# as last time, else 0). A second run finds the stamp of the first one and does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
TORCH=2.13.0
CPU_INDEX=https://download.pytorch.org/whl/cpu
VENV=.venv
STAMP="$VENV/aiworker-setup"
LOG=.aiworker/setup.log
# What a virtual environment is tied to.
IDENTITY='import sys; print(sys.version_info[:3], sys.base_prefix)'
STEPS=4

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

cuda_wanted() {
    local last=0
    [ -f "$STAMP" ] && last="$(sed -n 2p "$STAMP")"
    case "${CUDA:-$last}" in
        1 | yes | true) echo 1 ;;
        *) echo 0 ;;
    esac
}

key() {
    {
        pwd
        echo "$CUDA_WANTED"
        "$PYTHON" -c "$IDENTITY"
        cat pyproject.toml constraints.txt constraints-cuda.txt scripts/setup.sh
    } | "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# step NUMBER TITLE COMMAND...: one line on the terminal, the rest in the log.
step() {
    local number="$1" title="$2" started=$SECONDS child status=0
    shift 2
    "$@" >>"$LOG" 2>&1 &
    child=$!
    if [ -t 1 ]; then
        while kill -0 "$child" 2>/dev/null; do
            printf '\rsetup [%s/%s] %s ... %ss ' "$number" "$STEPS" "$title" "$((SECONDS - started))"
            sleep 0.5
        done
        printf '\r'
    fi
    wait "$child" || status=$?
    if [ "$status" -ne 0 ]; then
        printf '\n' >&2
        tail -n 15 "$LOG" >&2
        fail "step $number ($title) failed; the whole log is $LOG"
    fi
    printf 'setup [%s/%s] %s: %ss      \n' "$number" "$STEPS" "$title" "$((SECONDS - started))"
}

pip() {
    "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"
}

make_venv() {
    local have=""
    [ -x "$VENV/bin/python" ] && have="$("$VENV/bin/python" -c "$IDENTITY" 2>/dev/null || true)"
    if [ "$have" != "$("$PYTHON" -c "$IDENTITY")" ] || ! pip --version; then
        "$PYTHON" -m venv --clear "$VENV"
    fi
}

install_torch() {
    if [ "$CUDA_WANTED" = 1 ] || [ "$(uname -s)" = Darwin ]; then
        pip install "torch==$TORCH" "torchvision==0.28.0" -c constraints.txt
        return
    fi
    # The local version +cpu is what keeps gigabytes of CUDA packages away.
    pip install --no-deps "torch==$TORCH+cpu" && return
    echo "pip's own sources have no torch==$TORCH+cpu; trying $CPU_INDEX"
    pip install --no-deps --index-url "$CPU_INDEX" "torch==$TORCH+cpu" && return
    echo "torch==$TORCH+cpu was found neither where pip is configured to look nor at $CPU_INDEX."
    echo "Put its wheel into a folder and set PIP_FIND_LINKS to it, or run again with CUDA=1 for the GPU build (gigabytes)."
    return 1
}

install_packages() {
    # Two packages with the same files: the one that goes must go first.
    pip uninstall --yes opencv-python
    pip install --no-deps --requirement constraints.txt
    [ "$CUDA_WANTED" = 0 ] || pip install --no-deps --requirement constraints-cuda.txt
}

install_aiworker() {
    pip install --no-deps --no-build-isolation --editable .
    local missing
    missing="$(pip check | grep '^aiworker ' || true)"
    if [ -n "$missing" ]; then
        echo "constraints.txt lacks what pyproject.toml asks for: $missing"
        return 1
    fi
}

command -v "$PYTHON" >/dev/null || fail "no $PYTHON here; install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$PYTHON" --version) is too old; Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$PYTHON lacks venv or ensurepip; install them (Debian and Ubuntu: the package python3-venv), or name another Python: make setup PYTHON=..."

CUDA_WANTED="$(cuda_wanted)"
KEY="$(key)"
if [ -f "$STAMP" ] && [ "$(sed -n 1p "$STAMP")" = "$KEY" ]; then
    exit 0
fi

mkdir -p "$(dirname "$LOG")"
rm -f "$STAMP"
: >"$LOG"
if [ "$CUDA_WANTED" = 1 ]; then
    flavour="for NVIDIA GPUs"
else
    flavour="for CPUs"
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
        echo "setup: there is an NVIDIA GPU here; CUDA=1 installs the torch that uses it"
    fi
fi
step 1 "virtual environment" make_venv
step 2 "torch $TORCH $flavour" install_torch
step 3 "$(grep -c == constraints.txt) packages" install_packages
step 4 "aiworker" install_aiworker
printf '%s\n%s\n' "$KEY" "$CUDA_WANTED" >"$STAMP"
