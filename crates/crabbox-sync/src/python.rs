//! Finding a Python in the lease: the shell lines that start our programs there.
//!
//! The oldest one that they run on is 3.6, which RHEL 8 and Ubuntu 18.04 have. It must never run a program on an older one, nor read
//! of the standard input before it knows.

use crabbox_ssh::quote;

/// The exit code of a lease that has no Python for our programs; standard error says so.
pub(crate) const NO_PYTHON: i32 = 72;

/// Ends an older one with that code before anything else happens.
const GUARD: &str = "import sys\nsys.version_info < (3, 6) and sys.exit(72)\n";

/// Shell lines that run `program` with the shell words `words` behind it. The name that a user chose comes first; RHEL has one for its
/// own tools when it has no other, and some images have no name but that with the version.
pub(crate) fn script(program: &str, words: &str) -> String {
    let program = quote::single(&format!("{GUARD}{program}"));
    format!(
        r#"old=
for p in python3 /usr/libexec/platform-python python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 python3.7 python3.6; do
  command -v "$p" >/dev/null 2>&1 || continue
  "$p" -IS -c {program} {words}
  code=$?
  [ "$code" = {NO_PYTHON} ] || exit "$code"
  old="$old $p"
done
echo "the lease has no python3${{old:+ (3.6 or newer; older are:$old)}}, which this needs there: install it there or in the image (Debian: apt-get install python3, RHEL: dnf install python3)" >&2
exit {NO_PYTHON}
"#
    )
}
