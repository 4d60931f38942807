//! The streams of a client that are those of a host behind this gateway.
//!
//! The host is told for whom the gateway speaks, which is the client's owner and nobody else. What is said is neither read nor
//! changed on its way.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;

use crabbox_host::signals::Heed;
use crabbox_host::wait::wait;
use rustix::event::PollFlags;

use super::{Out, Serve, ServeError};
use crate::fleet::client::{FleetError, start_for};
use crate::fleet::lines::Lines;
use crate::fleet::wire::Reply;
use crate::placement::gateway::Gateway;

impl Serve<'_> {
    /// Makes the streams those of the host `node`, until either side has ended.
    pub(super) fn enter(
        &self,
        gateway: &Gateway,
        node: &str,
        lines: &mut Lines<File>,
        out: &Out<'_>,
    ) -> Result<(), ServeError> {
        let host = gateway.node(node)?;
        let dir = self.engine.control_dir().map_err(FleetError::from)?;
        let mut peer = start_for(&self.owner, host, &gateway.access(), &dir, Heed::ever())?;
        let (mut to, mut from) = peer.streams().map_err(ServeError::Streams)?;
        out.put(&Reply::Done)?;
        let mut input = lines.get_mut().try_clone().map_err(ServeError::Streams)?;
        let mut output = out.0.try_clone().map_err(ServeError::Streams)?;
        let behind = lines.behind();
        let (ended, end) = io::pipe().map_err(ServeError::Streams)?;
        // Neither is waited for: each may be blocked on somebody who does not listen, and both end with this process.
        std::thread::spawn(move || {
            if to.write_all(&behind).is_ok() {
                // Dropped at its end, which tells the host.
                io::copy(&mut input, &mut to).ok();
            }
        });
        std::thread::spawn(move || {
            io::copy(&mut from, &mut output).ok();
            drop(end);
        });
        wait(ended.as_fd(), PollFlags::IN, Some(self.interrupts.as_fd()), None)
            .map_err(ServeError::Streams)?;
        Ok(())
    }
}
