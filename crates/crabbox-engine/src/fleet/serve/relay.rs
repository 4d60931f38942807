//! Connects a client's streams to a host behind this gateway.
//!
//! The host is told on whose behalf the gateway speaks, which is always the client's own owner. The relayed
//! bytes are neither read nor changed.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;

use crabbox_host::signals::Cancellation;
use crabbox_host::wait::wait;
use rustix::event::PollFlags;

use super::{Out, Serve, ServeError};
use crate::fleet::client::{FleetError, start_for};
use crate::fleet::lines::Lines;
use crate::fleet::wire::Reply;
use crate::placement::gateway::Gateway;

impl Serve<'_> {
    /// Relays between the client and the host `node` until either side has ended.
    pub(super) fn enter(
        &self,
        gateway: &Gateway,
        node: &str,
        lines: &mut Lines<File>,
        out: &Out<'_>,
    ) -> Result<(), ServeError> {
        let host = gateway.node(node)?;
        let dir = self.engine.control_dir().map_err(FleetError::from)?;
        let mut peer = start_for(&self.owner, host, &gateway.access(), &dir, Cancellation::ever())?;
        let (mut to, mut from) = peer.streams().map_err(ServeError::Streams)?;
        out.put(&Reply::Done)?;
        let mut input = lines.get_mut().try_clone().map_err(ServeError::Streams)?;
        let mut output = out.0.try_clone().map_err(ServeError::Streams)?;
        let behind = lines.behind();
        let (ended, end) = io::pipe().map_err(ServeError::Streams)?;
        // Neither thread is joined: each may be blocked on a peer that does not read, and both end with this
        // process.
        std::thread::spawn(move || {
            if to.write_all(&behind).is_ok() {
                // `to` is dropped at the end, which tells the host.
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
