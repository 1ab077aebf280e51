#!/usr/bin/env bash
# bash run.sh COMMAND [options]; without a command it lists them. The first command that needs it makes the environment.
#
#   REFOCUS_PYTHON  interpreter to use instead of choosing one (its packages are taken as they are)
#   REFOCUS_UPSTREAM=submodule|stand-in  insists on one implementation of VAR
#   NPROC, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT  processes and nodes, see docs/cluster.md (default: a process per GPU
#          for the commands that are worth it, else one)
set -euo pipefail
here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
environment="$here/refocus_ext/environment.py"
# glibc asks for huge pages: measured by `bench --section environment`; how threads wait is chosen in refocus_ext/threads.py
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

fail() { echo "refocus: $*" >&2; exit 1; }

# A python3 that runs the parts which need no packages: help, and the check of environments.
bare_python() {
    local candidate
    for candidate in "${REFOCUS_PYTHON:-}" "$here/.venv/bin/python" python3 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if ! "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null; then
            [ "$candidate" != "${REFOCUS_PYTHON:-}" ] || fail "REFOCUS_PYTHON=$candidate is older than Python 3.10; name a newer one."
            continue
        fi
        command -v "$candidate"
        return
    done
    fail "needs python3 of version 3.10 or newer; found $(python3 --version 2>&1 || true). Install one, or name it in REFOCUS_PYTHON."
}

# An interpreter that can read a command line, which takes typed-argparse: REFOCUS_PYTHON, .venv, python3, or a .venv made now.
light_python() {
    local python="$1" candidate
    if [ -n "${REFOCUS_PYTHON:-}" ]; then
        if lacks "$python" command-line >/dev/null; then refuse_chosen "$(lacks "$python" run)"; fi
        echo "$python"
        return
    fi
    for candidate in "$here/.venv/bin/python" "$(command -v python3 || true)"; do
        if [ -x "$candidate" ] && ! lacks "$candidate" command-line >/dev/null; then echo "$candidate"; return; fi
    done
    make_light_environment "$python" >&2
    echo "$here/.venv/bin/python"
}

# An interpreter that has every package: REFOCUS_PYTHON, .venv, the current python3, or else a .venv made now.
ready_python() {
    local need="$1" python="$2" missing candidate
    if [ -n "${REFOCUS_PYTHON:-}" ]; then
        if missing="$(lacks "$python" "$need")"; then refuse_chosen "$missing"; fi
        echo "$python"
        return
    fi
    for candidate in "$here/.venv/bin/python" "$(command -v python3 || true)"; do
        if [ -x "$candidate" ] && ! missing="$(lacks "$candidate" "$need")"; then echo "$candidate"; return; fi
    done
    make_environment "$need" "$python" "$missing" >&2
    echo "$here/.venv/bin/python"
}

# Prints what an interpreter lacks for a need; true if that is anything.
lacks() { ! "$1" "$environment" "$2"; }

refuse_chosen() { fail "REFOCUS_PYTHON=$REFOCUS_PYTHON lacks $1; install them, or unset it."; }

make_light_environment() {
    local requirement
    requirement="$("$1" "$environment" --requirements command-line)"
    echo "refocus: installing $requirement, which reads the options, into $here/.venv"
    make_venv "$1"
    install --retries 1 "$requirement" ||
        fail "installing $requirement failed (above: why). \`bash run.sh\` lists the commands without it."
}

make_environment() {
    local need="$1" python="$2" missing="$3" extra=""
    [ "$need" = run ] || extra="[$need]"
    echo "refocus: $python lacks $missing: installing into $here/.venv (once; PyTorch with CUDA libraries is about 5 GB)"
    make_venv "$python"
    install -e "$here$extra" ||
        fail "installing the packages failed (above: why). Run the same command again, or name an interpreter in REFOCUS_PYTHON."
    if missing="$(lacks "$here/.venv/bin/python" "$need")"; then fail "after installing, .venv still lacks $missing."; fi
}

# What one command needs beside the others, when it is first asked for: into .venv, never into a Python of the user's.
add_extra() {
    local extra="$1" python="$2" missing requirements
    missing="$(lacks "$python" "$extra")" || return 0
    requirements="$("$python" "$environment" --requirements "$extra")"
    if [ "$python" != "$here/.venv/bin/python" ]; then
        fail "$extra needs $missing, which $python lacks; \`$python -m pip install '$requirements'\` adds it."
    fi
    echo "refocus: installing $requirements, which $extra needs, into $here/.venv (once)"
    install "$requirements" || fail "installing $requirements failed (above: why). The other commands do not need it."
}

# One that is there is kept; without pip (interrupted, or made by another tool) it gets pip.
make_venv() {
    local python="$here/.venv/bin/python"
    if [ -x "$python" ]; then
        "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --default-pip >/dev/null 2>&1 ||
            fail "$here/.venv has no pip and could not get it; on Debian or Ubuntu install python3-venv, or remove that folder."
    elif ! "$1" -m venv "$here/.venv"; then
        rm -rf "$here/.venv"
        fail "could not make .venv; on Debian or Ubuntu install python3-venv, or name an interpreter in REFOCUS_PYTHON."
    fi
}

# pip install in .venv: every REFOCUS_TICK seconds (10) it says what pip is at, and if pip fails, its last lines.
install() {
    local log ticker code=0
    log="$(mktemp)"
    tick "$log" &
    ticker=$!
    env -u PIP_TARGET -u PIP_PREFIX PIP_USER=0 "$here/.venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off "$@" >"$log" 2>&1 || code=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    [ "$code" = 0 ] || tail -n 15 "$log"
    rm -f "$log"
    return "$code"
}

tick() {
    local every="${REFOCUS_TICK:-10}" began="$SECONDS"
    while sleep "$every" >/dev/null 2>&1 && kill -0 "$$" 2>/dev/null; do # it ends with run.sh, whatever ends that
        echo "refocus: installing for $((SECONDS - began)) s: $(tail -n 1 "$1" | cut -c 1-100)"
    done
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

# Bash lines that complete `bash run.sh COMMAND --option`: they ask argcomplete in this interpreter.
completion() {
    if lacks "$1" completion >/dev/null; then fail "completion needs argcomplete; \`$1 -m pip install argcomplete\` installs it."; fi
    cat <<EOF
_refocus_run_sh() {
    case "\${COMP_WORDS[1]:-}" in run.sh | */run.sh) ;; *) return ;; esac
    local IFS=\$'\\013'
    COMPREPLY=(\$(COMP_LINE="\$COMP_LINE" COMP_POINT="\$COMP_POINT" COMP_TYPE="\${COMP_TYPE:-9}" _ARGCOMPLETE=2 \\
        _ARGCOMPLETE_IFS="\$IFS" _ARGCOMPLETE_SHELL=bash PYTHONPATH=$(printf %q "$here") $(printf %q "$1") -m refocus_ext \\
        8>&1 9>/dev/null >/dev/null 2>&1))
}
complete -o nospace -o default -o bashdefault -F _refocus_run_sh bash
EOF
}

command_name="${1:-help}"
if [ -n "${REFOCUS_PYTHON:-}" ] && ! command -v "$REFOCUS_PYTHON" >/dev/null 2>&1; then
    echo "refocus: REFOCUS_PYTHON=$REFOCUS_PYTHON is no program; name an interpreter, or unset it." >&2
    exit 2
fi
for variable in NPROC NNODES; do
    case "${!variable:-1}" in
    0* | *[!0-9]*)
        echo "refocus: $variable=${!variable} is not a whole number from 1; correct or unset it." >&2
        exit 2
        ;;
    esac
done
base="$(bare_python)"
# The list of commands, a command that does not exist, and the help of run.sh's own commands need no package.
if [ "$#" -le 1 ]; then case "$command_name" in help | -h | --help) exec "$base" -m refocus_ext ;; esac; fi
"$base" -m refocus_ext --known "$@" || exit $?
case "$command_name" in test | completion) if wants_help "$@"; then exec "$base" -m refocus_ext "$@"; fi ;; esac

processes_worth=one
if [ "$command_name" != test ]; then
    light="$(light_python "$base")"
    if [ "$command_name" = completion ]; then completion "$light"; exit; fi
    if [ "$command_name" = help ] || wants_help "$@"; then exec "$light" -m refocus_ext "$@"; fi
    # A wrong option is refused before anything else is installed.
    processes_worth="$("$light" -m refocus_ext --check "$@")" || exit $?
    if [ "$processes_worth" = light ]; then exec "$light" -m refocus_ext "$@"; fi
fi

need=run
if [ "$command_name" = test ]; then need=test; fi
python="$(ready_python "$need" "$base")"
if [ "$command_name" = web ]; then add_extra web "$python" >&2; fi
populate_submodule
if [ "$command_name" = test ]; then
    shift
    echo "refocus: testing with $python"
    cd "$here"
    exec "$python" -m pytest -n auto --dist worksteal "$@" # in several processes; -n 0 runs in one
fi

# One process per GPU (or NPROC of them), on one node or several: refocus_ext/launch.py where that makes more than one.
gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true
    elif command -v nvidia-smi >/dev/null 2>&1; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}
processes=1
if [ "$processes_worth" = several ]; then processes="${NPROC:-$(gpus)}"; fi
if [ "$processes" -lt 1 ]; then processes=1; fi
if [ "$processes" -gt 1 ] || [ "${NNODES:-1}" -gt 1 ]; then
    if [ "${NNODES:-1}" -gt 1 ]; then
        for variable in NODE_RANK MASTER_ADDR; do
            [ -n "${!variable:-}" ] && continue
            echo "refocus: NNODES=$NNODES needs $variable too: this node's number from 0 (NODE_RANK), the first node's address (MASTER_ADDR)." >&2
            exit 2
        done
        where=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
    else
        where=()
    fi
    # What every process would refuse is refused once, by one process.
    "$python" -m refocus_ext --preflight $((processes * ${NNODES:-1})) "$@" || exit $?
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" REFOCUS_PROCESSES=$((processes * ${NNODES:-1}))
    for word in "$@"; do # a plan needs one process, and no other node
        if [ "$word" = --dry-run ]; then exec "$python" -m refocus_ext "$@"; fi
    done
    exec "$python" -m refocus_ext.launch --processes "$processes" ${where[@]+"${where[@]}"} -- -m refocus_ext "$@"
fi
exec "$python" -m refocus_ext "$@"
