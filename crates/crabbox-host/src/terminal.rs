//! The size of the terminal that shows standard output. Only looks; it must never change a setting of the terminal.

use std::io;

/// How many lines it has; `None` where standard output is no terminal, or one that does not say.
pub fn rows() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_row).filter(|rows| *rows > 0)
}
