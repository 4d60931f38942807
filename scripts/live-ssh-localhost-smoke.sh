#!/usr/bin/env bash
# A whole life of a lease of the provider ssh: an sshd of its own on loopback, leased, entered, used and given back.
#
# Everything it makes lies in one temporary directory: your keys, your authorized_keys and your crabbox state are never touched.
set -u

usage() {
  cat <<'USAGE'
usage: live-ssh-localhost-smoke.sh [--dry-run] [--help]

  --dry-run  print what would be run, and run nothing

environment: CRABBOX_BIN names the crabbox to use (default: crabbox)
exit codes:  0 passed, 1 a step failed, 2 wrong usage or a tool is missing
USAGE
}

die() {
  printf 'live-ssh-localhost-smoke: %s\n' "$*" >&2
  exit 2
}

dry_run=false
for option in "$@"; do
  case $option in
    --dry-run) dry_run=true ;;
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
slug=localhost-smoke
if $dry_run; then
  printf 'classification=dry_run provider=ssh mutation=false\n'
  for step in 'doctor --doctor-probe-ssh --json' "warmup --slug $slug" 'status --wait' 'run --no-sync' cp tunnel 'list --json' stop; do
    printf 'command=%s %s\n' "$crabbox" "$step"
  done
  exit 0
fi

PATH=$PATH:/usr/sbin:/sbin
for tool in jq sshd ssh ssh-keygen rsync git; do
  command -v "$tool" >/dev/null || die "$tool is not installed"
done
command -v "$crabbox" >/dev/null || die "$crabbox is not an executable program; set CRABBOX_BIN"

scratch=$(mktemp -d) || die "cannot make a temporary directory"
sshd_pid='' tunnel_pid='' leased=false
clean_up() {
  ! $leased || "$crabbox" stop --provider ssh "$slug" >/dev/null 2>&1
  for pid in $tunnel_pid $sshd_pid; do
    kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
  done
  rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  printf 'classification=live_failed provider=ssh step=%s exit=%s\n' "$1" "$2"
  printf 'stderr=%s\n' "$(tr -s '\r\n\t' '   ' <"$scratch/err" | head -c 2000)"
  exit 1
}

# Each step: its name, then the command; what it says goes to files.
step() {
  local name=$1
  shift
  "$@" >"$scratch/out" 2>"$scratch/err" || fail "$name" $?
}

# Whether the last step printed one document for which a jq filter is true.
document() {
  local name=$1
  shift
  jq --slurp --exit-status "$@" "$scratch/out" >/dev/null 2>"$scratch/err" || fail "$name" $?
}

# What the server at a port of loopback says first; nothing when nobody listens.
greeting() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1" && read -r -t 5 line <&3 && printf '%s\n' "$line") 2>/dev/null
}

# A world of its own for crabbox: home, state, sockets.
export HOME=$scratch/home XDG_RUNTIME_DIR=$scratch/run
unset XDG_CONFIG_HOME XDG_STATE_HOME CRABBOX_CONFIG CRABBOX_PROVIDER SSH_AUTH_SOCK
mkdir -p -m 700 "$HOME" "$XDG_RUNTIME_DIR" "$scratch/tree"
step key ssh-keygen -q -t ed25519 -N '' -f "$scratch/key"
step host-key ssh-keygen -q -t ed25519 -N '' -f "$scratch/host_key"
port=$((20000 + RANDOM % 12000))
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  port=$((port + 1))
done
cat >"$scratch/sshd_config" <<CONFIG
Port $port
ListenAddress 127.0.0.1
HostKey $scratch/host_key
AuthorizedKeysFile $scratch/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
CONFIG
# An sshd of root separates its privileges in there.
[ "$(id -u)" -ne 0 ] || mkdir -p /run/sshd
"$(command -v sshd)" -D -e -f "$scratch/sshd_config" 2>"$scratch/sshd.log" &
sshd_pid=$!
export CRABBOX_PROVIDER=ssh CRABBOX_STATIC_HOST=127.0.0.1 CRABBOX_STATIC_PORT=$port CRABBOX_SSH_KEY=$scratch/key
CRABBOX_STATIC_USER=$(id -un)
CRABBOX_STATIC_WORK_ROOT=$scratch/work
export CRABBOX_STATIC_USER CRABBOX_STATIC_WORK_ROOT
cd "$scratch/tree" || die "cannot enter $scratch/tree"
step tree git init --quiet .

leased=true
step warmup "$crabbox" warmup --slug "$slug" --keep
step doctor "$crabbox" doctor --json --doctor-probe-ssh
document doctor_json 'length == 1 and .[0].ok == true'
step status "$crabbox" status --wait --wait-timeout 60s "$slug"
step run "$crabbox" run --id "$slug" --no-sync -- echo crabbox-ssh-localhost-ok
grep -qx crabbox-ssh-localhost-ok "$scratch/out" || fail run_output 0

printf 'there and back\n' >'up [1]'
step cp_up "$crabbox" cp --id "$slug" 'up [1]' "SANDBOX:$scratch/there [1]"
chmod 711 "$scratch/there [1]"
step cp_down "$crabbox" cp --id "$slug" "SANDBOX:$scratch/there [1]" 'down [1]'
step cp_equal cmp 'up [1]' 'down [1]'
# Of the foreign mode only the executable bit is kept.
[ "$(stat -c %a 'down [1]')" = 755 ] || fail cp_mode "$(stat -c %a 'down [1]')"

# The tunnel leads to the sshd itself, which greets whoever comes.
"$crabbox" tunnel --id "$slug" "$port" >"$scratch/url" 2>"$scratch/err" &
tunnel_pid=$!
greeted=false
for _ in $(seq 100); do
  local_port=$(sed -n 's|^http://127\.0\.0\.1:\([0-9]*\)$|\1|p' "$scratch/url")
  case $local_port:$(greeting "${local_port:-1}") in
    *:SSH-2.0-*) greeted=true && break ;;
  esac
  sleep 0.1
done
$greeted || fail tunnel 1
kill -INT "$tunnel_pid"
wait "$tunnel_pid" || fail tunnel_end $?
tunnel_pid=

step list "$crabbox" list --json
document list_json --arg slug "$slug" 'length == 1 and any(.[0][]; .labels.slug == $slug)'
step stop "$crabbox" stop "$slug"
leased=false
[ -z "$(ls -A "$HOME/.config/crabbox/state/claims" 2>/dev/null)" ] || fail residue 0
printf 'classification=live_passed provider=ssh mutation=true steps=doctor,warmup,status,run,cp,tunnel,list,stop\n'
