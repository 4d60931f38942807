//! Properties of standard output: terminal size, and whether it still has a reader. It must never change a
//! setting of the terminal.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Its height in lines; `None` if standard output is not a terminal, or the terminal does not report it.
pub fn rows() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_row).filter(|rows| *rows > 0)
}

/// Whether standard output may still have a reader: `false` once the other end of a pipe is closed, or a
/// terminal has hung up (poll(2)).
pub fn is_read() -> bool {
    let out = io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let looked = poll(&mut fds, Some(&Timespec::default()));
    !(looked.is_ok() && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP))
}
