#!/usr/bin/env bash
# Says whether this host is ready to lease Firecracker microVMs, in one line that scripts can read.
#
# Without options it only runs `crabbox doctor --provider firecracker --json` and classifies what it says. With --full it also
# leases a machine on a host that is ready, runs in it, gives it back, and proves that `crabbox list` is what it was before.
set -u

usage() {
  cat <<'USAGE'
usage: live-firecracker-smoke.sh [--dry-run] [--full] [--help]

  --dry-run  print what would be run, and run nothing
  --full     on a ready host: lease, run, stop, and check that nothing is left (changes the host while it runs)

environment: CRABBOX_BIN names the crabbox to use (default: crabbox)
exit codes:  0 ready, 1 not ready, 2 wrong usage or a tool is missing
USAGE
}

die() {
  printf 'live-firecracker-smoke: %s\n' "$*" >&2
  exit 2
}

dry_run=false
full=false
for option in "$@"; do
  case $option in
    --dry-run) dry_run=true ;;
    --full) full=true ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      die "unknown option $option"
      ;;
  esac
done

crabbox=${CRABBOX_BIN:-crabbox}
facts="provider=firecracker mutation=$full"

if $dry_run; then
  printf 'classification=dry_run %s\n' "$facts"
  printf 'command=%s doctor --provider firecracker --json\n' "$crabbox"
  if $full; then
    printf 'command=%s warmup --provider firecracker\n' "$crabbox"
    printf 'command=%s run --provider firecracker --id LEASE -- ...\n' "$crabbox"
    printf 'command=%s stop --provider firecracker LEASE\n' "$crabbox"
  fi
  exit 0
fi

command -v jq >/dev/null || die "jq is not installed (Debian: sudo apt-get install jq)"
command -v "$crabbox" >/dev/null || die "$crabbox is not an executable program; set CRABBOX_BIN"

scratch=$(mktemp -d) || die "cannot make a temporary directory"
lease=
clean_up() {
  # A lease that is still ours here belongs to a step that failed.
  [ -z "$lease" ] || "$crabbox" stop --provider firecracker "$lease" >/dev/null 2>&1
  rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

one_line() {
  tr -s '\r\n\t' '   ' <"$1" | head -c 2000
}

# The read-only part: what the doctor says. mutation=false whatever comes later.
"$crabbox" doctor --provider firecracker --json >"$scratch/doctor.json" 2>"$scratch/doctor.err"
doctor_exit=$?
readonly_facts="provider=firecracker mutation=false"

reject() {
  printf 'classification=validation_failed %s reason=%s doctor_exit=%s\n' "$readonly_facts" "$1" "$doctor_exit"
  printf 'stderr=%s\n' "$(one_line "$scratch/doctor.err")"
  exit 1
}

valid='type == "object" and .provider == "firecracker" and (.ok | type == "boolean") and (.checks | type == "array")
  and all(.checks[]; type == "object" and (.check | type == "string") and (.status | type == "string"))'
# Exactly one document: --slurp makes an array of however many there are.
jq --slurp --exit-status "length == 1 and (.[0] | $valid)" "$scratch/doctor.json" >/dev/null 2>&1 ||
  reject malformed_doctor_json

ours='[.checks[] | select(.provider == "firecracker")]'
jq --exit-status "$ours | length > 0" "$scratch/doctor.json" >/dev/null || reject missing_firecracker_checks
checks=$(jq --raw-output "$ours | map(\"\(.check)=\(.status)\") | join(\",\")" "$scratch/doctor.json")

if [ "$doctor_exit" -ne 0 ]; then
  blocking=$(jq --raw-output '[.checks[] | select(.status == "failed" or .status == "missing")
    | "\(.check):\(.details.class // .details.reason // "failed")"] | join(",")' "$scratch/doctor.json")
  [ -n "$blocking" ] || reject doctor_failed_without_blocking_checks
  printf 'classification=environment_blocked %s checks=%s blocking_checks=%s\n' "$readonly_facts" "$checks" "$blocking"
  printf 'stderr=%s\n' "$(one_line "$scratch/doctor.err")"
  exit 1
fi
printf 'classification=readiness_passed %s checks=%s\n' "$readonly_facts" "$checks"
$full || exit 0

# The part that changes the host, and changes it back.
fail() {
  printf 'classification=full_failed %s step=%s exit=%s lease=%s\n' "$facts" "$1" "$2" "${lease:--}"
  printf 'stderr=%s\n' "$(one_line "$scratch/step.err")"
  exit 1
}

# The machines there are, whatever else changes about them meanwhile.
machines() {
  "$crabbox" list --provider firecracker --json 2>"$scratch/step.err" >"$scratch/list.json" &&
    jq --compact-output '[.[] | .CloudID // .name // (.id | tostring)] | sort' "$scratch/list.json" 2>>"$scratch/step.err"
}

before=$(machines) || fail list_before $?
started=$(date +%s)

# A working tree of our own, with a change that nobody committed: it must arrive.
mkdir "$scratch/tree" && cd "$scratch/tree" || fail tree $?
{
  git init --quiet . && printf 'committed\n' >word &&
    git add word && git -c user.name=smoke -c user.email=smoke@localhost commit --quiet --message smoke &&
    printf 'changed\n' >word
} 2>"$scratch/step.err" || fail tree $?

"$crabbox" warmup --provider firecracker >"$scratch/step.out" 2>"$scratch/step.err"
code=$?
lease=$(grep -o -m1 -E 'cbx_[0-9a-f]{12}' "$scratch/step.out" | head -n 1)
[ "$code" -eq 0 ] && [ -n "$lease" ] || fail warmup "$code"

"$crabbox" run --provider firecracker --id "$lease" -- sh -c 'cat word; echo problem >&2; exit 7' \
  >"$scratch/step.out" 2>"$scratch/step.err"
code=$?
[ "$code" -eq 7 ] || fail run_exit_code "$code"
grep -qx changed "$scratch/step.out" || fail run_output "$code"
grep -qx problem "$scratch/step.err" || fail run_stderr "$code"

"$crabbox" stop --provider firecracker "$lease" >"$scratch/step.out" 2>"$scratch/step.err" || fail stop $?
stopped=$lease
lease=

after=$(machines) || fail list_after $?
if [ "$before" != "$after" ]; then
  printf 'before %s after %s\n' "$before" "$after" >"$scratch/step.err"
  fail residue 1
fi
printf 'classification=full_passed %s lease=%s seconds=%s machines=%s\n' \
  "$facts" "$stopped" "$(($(date +%s) - started))" "$(printf '%s' "$after" | jq length)"
