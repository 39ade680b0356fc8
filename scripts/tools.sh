#!/bin/sh
# Looks for what a build needs. Called by the Makefile; downloads and installs nothing.
#
# Prints one word per Python to test on, oldest first: "3.11=/path/to/python". When something is
# missing or too old it prints "!" and one line that says what to install instead; the Makefile
# stops there. Pythons that are left out although they are new enough are named on standard error.
#
# For each Python .venv/MINOR.from records which interpreter it is, and is rewritten only when that
# changes: the virtual environment depends on it, so that an upgraded interpreter gets a new one.
set -u
cd "$(dirname "$0")/.." || exit 1

stop() {
    printf '! %s\n' "$1"
    exit 0
}

# --- the compilers ---------------------------------------------------------------------------------

# Rust links with cc; a compiler without the C library's headers and start files is no help.
echo 'int main(void) { return 0; }' | cc -x c - -o /dev/null 2>/dev/null ||
    stop "no working cc: install a C compiler with its C library (Debian: apt-get install gcc libc6-dev)"

rust_needed=$(sed -n 's/^rust-version = "\([0-9.]*\)"/\1/p' Cargo.toml)
rust_found=$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9]*\.[0-9]*\).*/\1/p')
[ -n "$rust_found" ] ||
    stop "no working cargo on PATH: install Rust $rust_needed or newer (rustup toolchain install stable)"
if [ "${rust_found%%.*}" -lt "${rust_needed%%.*}" ] ||
    { [ "${rust_found%%.*}" -eq "${rust_needed%%.*}" ] && [ "${rust_found#*.}" -lt "${rust_needed#*.}" ]; }; then
    stop "cargo $rust_found is too old: install Rust $rust_needed or newer (rustup update stable)"
fi

# --- the Pythons -----------------------------------------------------------------------------------

# Prints "MINOR PATH VERSION STATE". The base executable, so that make works the same inside an
# activated virtual environment, and so that a shim is resolved to what it stands for.
probe='
import sys
if sys.version_info < (3, 11) or sys.implementation.name != "cpython":
    sys.exit(1)
import sysconfig
state = "ok"
try:
    import ensurepip, venv
except ImportError:
    state = "no-venv"
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    state = "free-threaded"
path = getattr(sys, "_base_executable", None) or sys.executable
print("%d.%d" % sys.version_info[:2], path, sys.version.split()[0], state)
'

found=""
left_out=""

# consider COMMAND: adds it unless it does not run, is too old, or its minor version is there already.
consider() {
    about=$("$1" -I -c "$probe" 2>/dev/null </dev/null) || return 1
    IFS=' ' read -r minor path version state <<END
$about
END
    case "$state" in
    ok) ;;
    *)
        case " $left_out " in
        *" $minor:$state "*) ;;
        *) left_out="$left_out $minor:$state" ;;
        esac
        return 1
        ;;
    esac
    case " $found " in
    *" $minor="*) return 0 ;;
    esac
    found="$found $minor=$path"
    mkdir -p .venv
    if [ "$(cat ".venv/$minor.from" 2>/dev/null)" != "$path $version" ]; then
        printf '%s\n' "$path $version" >".venv/$minor.from"
    fi
}

if [ -n "${PYTHONS:-}" ]; then
    for python in $PYTHONS; do
        consider "$python" ||
            stop "PYTHONS names $python, which is not a working CPython 3.11 or newer with the venv module"
    done
else
    # In the order of PATH, so that the first one that works wins; a name is looked at as a file, not
    # through command -v, because behind a version manager's shim that fails a real one may stand.
    rest=${PATH}:
    while [ -n "$rest" ]; do
        directory=${rest%%:*}
        rest=${rest#*:}
        for python in "$directory"/python3.[0-9] "$directory"/python3.[0-9][0-9] "$directory"/python3; do
            [ -x "$python" ] && consider "$python"
        done
    done
    for python in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python; do
        [ -x "$python" ] && consider "$python"
    done
    for one in $left_out; do
        case " $found " in
        *" ${one%%:*}="*) ;;
        *)
            case "$one" in
            *:no-venv) why="it has no venv module (Debian: apt-get install python${one%%:*}-venv)" ;;
            *) why="free-threaded builds are not tested yet" ;;
            esac
            printf 'python %s is left out: %s\n' "${one%%:*}" "$why" >&2
            ;;
        esac
    done
fi

if [ -z "$found" ]; then
    case "$left_out" in
    *:no-venv*)
        stop "no Python 3.11 or newer has the venv module: install it (Debian: apt-get install python3-venv)"
        ;;
    *)
        stop "no working Python 3.11 or newer: install one with its venv module (Debian: apt-get install python3 python3-venv)"
        ;;
    esac
fi
printf '%s\n' $found | sort -t . -k 2n
