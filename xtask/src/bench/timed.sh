# Shared by the scripts that time commands: what comes after names `$work`, a directory of its own. What fails ends the script with its words.
set -eu
# Prints its first word and how many microseconds the command after it took.
ms() {
    name=$1
    shift
    begun=$(date +%s%N)
    "$@" >"$work/out" 2>&1 || { echo "$name failed: $*" >&2; cat "$work/out" >&2; exit 1; }
    echo "$name $((($(date +%s%N) - begun) / 1000))"
}
quiet() { "$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; exit 1; }; }
