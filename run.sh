#!/usr/bin/env bash
# bash run.sh COMMAND [options]; without a command it lists them. The first command that needs it makes the environment.
#
#   REFOCUS_PYTHON  interpreter to use instead of choosing one (its packages are taken as they are)
#   REFOCUS_UPSTREAM=submodule|stand-in  insists on one implementation of VAR
#   NPROC, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT  processes and nodes for torchrun (default: one process)
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # spinning threads stall when another program holds a core
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

fail() { echo "refocus: $*" >&2; exit 1; }

# A python3 that runs the parts which need no packages: help, and the check of environments.
bare_python() {
    local candidate
    for candidate in "${REFOCUS_PYTHON:-}" "$here/.venv/bin/python" python3 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null || continue
        command -v "$candidate"
        return
    done
    fail "needs python3 of version 3.10 or newer; found $(python3 --version 2>&1 || true). Install one, or name it in REFOCUS_PYTHON."
}

# An interpreter that has every package: REFOCUS_PYTHON, .venv, the current python3, or else a .venv made now.
ready_python() {
    local need="$1" python="$2" check="$here/refocus_ext/environment.py" missing candidate
    if [ -n "${REFOCUS_PYTHON:-}" ]; then
        missing="$("$python" "$check" "$need")" || fail "REFOCUS_PYTHON=$REFOCUS_PYTHON lacks $missing; install them, or unset it."
        echo "$python"
        return
    fi
    for candidate in "$here/.venv/bin/python" "$(command -v python3 || true)"; do
        if [ -x "$candidate" ] && missing="$("$candidate" "$check" "$need")"; then echo "$candidate"; return; fi
    done
    make_environment "$need" "$python" "$missing" >&2
    echo "$here/.venv/bin/python"
}

make_environment() {
    local need="$1" python="$2" missing="$3" extra=""
    [ "$need" = run ] || extra="[$need]"
    echo "refocus: $python lacks $missing: installing into $here/.venv (once; PyTorch with CUDA libraries is about 5 GB)"
    [ -x "$here/.venv/bin/python" ] || "$python" -m venv "$here/.venv" ||
        fail "could not make .venv; on Debian or Ubuntu install python3-venv, or name an interpreter in REFOCUS_PYTHON."
    "$here/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar off -e "$here$extra" ||
        fail "installing the packages failed (above: why). Run the same command again, or name an interpreter in REFOCUS_PYTHON."
    missing="$("$here/.venv/bin/python" "$here/refocus_ext/environment.py" "$need")" || fail "after installing, .venv still lacks $missing."
}

# Upstream VAR, where it can be reached; the stand-in serves where it cannot.
populate_submodule() {
    [ -e "$here/var_upstream/models/vqvae.py" ] || [ "${REFOCUS_UPSTREAM:-}" = stand-in ] && return 0
    [ -e "$here/.git" ] && command -v git >/dev/null || return 0
    local limit=()
    if command -v timeout >/dev/null; then limit=(timeout 60); fi
    GIT_TERMINAL_PROMPT=0 ${limit[@]+"${limit[@]}"} git -C "$here" submodule --quiet update --init var_upstream >/dev/null 2>&1 ||
        echo "refocus: the submodule var_upstream could not be fetched from GitHub" >&2
}

wants_help() {
    local word
    for word in "$@"; do case "$word" in -h | --help) return 0 ;; esac; done
    return 1
}

command_name="${1:-help}"
if [ -n "${REFOCUS_PYTHON:-}" ] && ! command -v "$REFOCUS_PYTHON" >/dev/null 2>&1; then
    echo "refocus: REFOCUS_PYTHON=$REFOCUS_PYTHON is no program; name an interpreter, or unset it." >&2
    exit 2
fi
base="$(bare_python)"
if [ "$command_name" = help ] || wants_help "$@"; then exec "$base" -m refocus_ext "$@"; fi
# A wrong command or option is told before anything is installed.
"$base" -m refocus_ext --check "$@" || exit $?

need=run
if [ "$command_name" = test ]; then need=test; fi
python="$(ready_python "$need" "$base")"
populate_submodule
if [ "$command_name" = test ]; then
    shift
    echo "refocus: testing with $python"
    cd "$here"
    exec "$python" -m pytest "$@"
fi

# One process per GPU (or NPROC of them), on one node or several: torchrun where that makes more than one.
gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true
    elif command -v nvidia-smi >/dev/null 2>&1; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}
processes="${NPROC:-1}"
case "$command_name" in
tokenizer | tokens | distill) if [ -z "${NPROC:-}" ] && [[ " $* " != *" --device "* ]] && [ "$(gpus)" -gt 1 ]; then processes="$(gpus)"; fi ;;
sample) # only sets of images are worth several processes
    case " $* " in
    *" --npz"* | *" --folder"*) if [ -z "${NPROC:-}" ] && [[ " $* " != *" --device "* ]] && [ "$(gpus)" -gt 1 ]; then processes="$(gpus)"; fi ;;
    *) processes=1 ;;
    esac
    ;;
eval) # of samples, Inception's features are shared out; a tokenizer is measured by one process
    case " $* " in
    *" --samples"*) if [ -z "${NPROC:-}" ] && [[ " $* " != *" --device "* ]] && [ "$(gpus)" -gt 1 ]; then processes="$(gpus)"; fi ;;
    *) processes=1 ;;
    esac
    ;;
*) processes=1 ;;
esac
if [ "$processes" -gt 1 ] || [ "${NNODES:-1}" -gt 1 ]; then
    if [ "${NNODES:-1}" -gt 1 ]; then
        where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?NNODES needs NODE_RANK}"
            --master-addr "${MASTER_ADDR:?NNODES needs MASTER_ADDR}" --master-port "${MASTER_PORT:-29500}")
    else
        where=(--standalone)
    fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec "$python" -m torch.distributed.run "${where[@]}" --nproc-per-node "$processes" -m refocus_ext "$@"
fi
exec "$python" -m refocus_ext "$@"
