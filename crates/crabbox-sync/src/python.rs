//! Finding a Python in the lease: the shell lines that start our programs there.
//!
//! The oldest one that they run on is 3.6, which RHEL 8 and Ubuntu 18.04 have. It must never run a program on an older one, nor read
//! of the standard input before it knows.

use crabbox_ssh::quote;

/// The exit code of a lease that has no Python for our programs; standard error says so.
pub(crate) const NO_PYTHON: i32 = 72;

/// What the interpreter itself says once it runs: [`script`] waits for nothing else. An older one ends with that code before anything
/// else happens; one that runs says so on descriptor 3 and takes the standard error that descriptor 5 is.
const GUARD: &str = "import sys\nsys.version_info < (3, 6) and sys.exit(72)\n\
                     import os\nos.write(3, b'cbx-began')\nos.dup2(5, 2)\nos.close(3)\nos.close(5)\n";

/// Shell lines that run `program` with the shell words `words` behind it. The name that a user chose comes first; RHEL has one for its
/// own tools when it has no other, and some images have no name but that with the version. A name alone says little: it may be a
/// version manager's stub, an environment whose interpreter has moved, or Python 2, so that whoever does not get as far as our first
/// line gives way to the next one. What it says is kept for the message.
pub(crate) fn script(program: &str, words: &str) -> String {
    let program = quote::single(&format!("{GUARD}{program}"));
    format!(
        r#"tried= nl='
'
exec 4>&1 5>&2
for p in python3 /usr/libexec/platform-python python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 python3.7 python3.6; do
  command -v "$p" >/dev/null 2>&1 || continue
  said=$("$p" -IS -c {program} {words} 3>&1 >&4 2>&3 4>&-)
  code=$?
  case $said in *cbx-began) exit "$code" ;; esac
  [ "$code" = {NO_PYTHON} ] && why='is too old' || why="exits with $code${{said:+: ${{said%%"$nl"*}}}}"
  tried="$tried${{tried:+; }}$p $why"
done
echo "the lease has no python3${{tried:+ that runs (3.6 or newer; $tried)}}, which this needs there: install it there or in the image (Debian: apt-get install python3, RHEL: dnf install python3)" >&2
exit {NO_PYTHON}
"#
    )
}
