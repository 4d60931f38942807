//! The guest's side of the lock: the shell scripts, and the files by which we and the Go program see each other.
//!
//! `.gate` is the lock, `.owner` names who has the tree, `.child` the command that runs there. What is written here must always be
//! something that the Go program can read: what it cannot read locks it out of the lease for good.

/// The exit code of a guest that has no tool for a lock, as in the Go program.
pub(super) const NO_TOOL: u8 = 73;
/// How often a session looks again at a Go program's owner, half a second apart: longer than any client waits for it.
const LOOKS: u16 = 600;

/// The session. Without `flock`, the lock is a directory that holds one file, named after its owner: renaming a directory
/// over an empty one is atomic and over a full one fails, and only the file of a process that is gone is ever removed.
///
/// A process that has ended is gone, whether somebody has reaped it or not: in a container whose first process does not, it stays for good.
///
/// The Go program holds the gate only while it writes, and owns the tree until the second in its owner file, which it renews. So a gate
/// that is free is not yet a tree that is. We own the tree by the gate alone: our owner file (`token` is 64 hexadecimal digits, as
/// there) has expired from the start, so that the Go program recovers at once when we are gone.
pub(super) fn session(key: &str, token: &str) -> String {
    format!(
        r#"umask 077
dir=$HOME/.crabbox/workspace-owners
[ -d "$dir" ] || mkdir -p "$dir" || exit 74
key=$dir/{key}
said=
tell() {{ [ "$said" = "$1" ] || echo "$1"; said=$1; }}
began() {{
  read -r s < "/proc/$1/stat" && set -- ${{s##*) }} || return
  case $1 in [ZX]) return 1 ;; esac
  echo "${{20}}"
}} 2>/dev/null
clock() {{ set -- $(ps -o lstart= -p "$1") && echo "$*"; }} 2>/dev/null
alive() {{
  p= c= t= g=
  [ ! -f "$key.child" ] || {{ read -r p; read -r c; read -r t g; }} < "$key.child"
  case $p in
    *' '*) set -- $p; p=$1 t=$2 g=$3 ;;
    '' | *[!0-9]*) return 1 ;;
  esac
  [ -z "$t" ] || {{ [ "$(began "$p")" = "$t" ]; return; }}
  [ -n "$(began "$p")" ] || return 1
  now=$(clock "$p")
  [ -z "$now" ] || [ "$now" = "$c" ]
}} 2>/dev/null
name() {{
  {{ read -r p; read -r c; read -r g; }} < "$key.child" && [ -z "$c" ] && c=$(clock "$p") || return
  printf '%s\n%s\n%s\n' "$p" "$c" "$g" > "$key.child.$$" && touch -r "$key.child" "$key.child.$$" && mv "$key.child.$$" "$key.child" ||
    rm -f "$key.child.$$"
}} 2>/dev/null
vacant() {{
  v= t= e=
  [ ! -f "$key.owner" ] || {{ read -r v; read -r t; read -r e; }} < "$key.owner"
  case $v/${{#t}}/$e in
    v1/64/0 | v1/64/ | v1/64/*[!0-9]*) return 0 ;;
    v1/64/*) now=$(date +%s) && [ "$e" -le "$now" ] ;;
  esac
}} 2>/dev/null
gate=
if command -v flock >/dev/null; then
  gate=flock
  exec 9>>"$key.gate"
  flock -n 9 || {{ tell busy; flock 9 || exit 74; }}
else
  me=$$.$(began $$)
  mkdir "$key.new.$$" && mv -T "$key.new.$$" "$key.try.$$" || exit {NO_TOOL}
  trap 'rm -rf "$key.try.$$"; rm -f "$key.lock/$me"' EXIT
  trap 'exit 1' HUP INT TERM
  : > "$key.try.$$/$me"
  until mv -T "$key.try.$$" "$key.lock" 2>/dev/null; do
    tell busy
    for f in "$key.lock"/*; do
      n=${{f##*/}}
      [ "$(began "${{n%.*}}")" = "${{n#*.}}" ] || rm -f "$f"
    done
    sleep 0.2
  done
fi
i=0
until vacant; do
  tell busy
  i=$((i + 1))
  [ $i -lt {LOOKS} ] || exit 75
  [ -z "$gate" ] || flock -u 9
  sleep 0.5
  [ -z "$gate" ] || flock 9 || exit 74
done
while alive; do tell child; sleep 0.2; done
rm -f "$key.child"
r=false
[ ! -e "$key.owner" ] || r=true
printf 'v1\n%s\n0\n' {token} > "$key.owner" || exit 74
echo "acquired $r"
word=
while read -r word && [ "$word" = name ]; do name; done
if [ "$word" = release ]; then
  rm -f "$key.owner" "$key.child"
  exit 0
fi
if alive && [ -n "$g" ]; then
  kill -TERM "-$g"
  i=0
  while grep -qs "^[0-9]* (.*) [^ZX] [0-9]* $g " /proc/[0-9]*/stat; do
    i=$((i + 1))
    [ $i -ne 20 ] || kill -KILL "-$g"
    [ $i -lt 40 ] || exit 74
    sleep 0.1
  done
fi
rm -f "$key.child"
exit 0
"#
    )
}

/// Notes the process that runs this: its number, and its start time and group, which are what we compare. The line between is for when
/// it began in the words of `ps`, which the Go program compares. Where `/proc` is not there, or is another process namespace's, it refuses: its numbers
/// would name somebody else, and the next client could start while this command still runs.
///
/// That line the session writes when it is told `name`: three programs more, for which no short command should wait. Until then it is
/// empty, and the Go program keeps out of the tree. The file keeps its time: it is when the command started.
pub(super) fn mark(key: &str) -> String {
    format!(
        r#"{{ read -r cbx < /proc/self/stat; }} 2>/dev/null || cbx=
[ "${{cbx%% *}}" = $$ ] || {{ echo 'crabbox: /proc in the lease does not show this command: mount it for the process namespace of sshd' >&2; exit 74; }}
set -- ${{cbx##*) }}
cbx=$HOME/.crabbox/workspace-owners/{key}.child
printf '%s\n\n%s %s\n' $$ "${{20}}" "$3" > "$cbx" || exit 74
set --; unset cbx"#
    )
}

#[cfg(test)]
mod tests;
