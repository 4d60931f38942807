//! Frames: how messages and bytes are told apart in a stream.
//!
//! A reader holds one frame at a time. It must never wait for more than the frame says, nor take the end of the stream within one for its end.

use std::io::{self, Read};

use crate::wire::Malformed;

/// The longest payload, in bytes: the variables of a command may have two mebibytes.
pub const PAYLOAD_LIMIT: usize = 4 << 20;

/// Files and lists are sent in pieces of this many bytes.
pub const PIECE: usize = 128 * 1024;

/// A stream of bytes within the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// A piece of a file or of a list.
    Data,
    /// Of the command's standard output.
    Out,
    /// Of its standard error.
    Err,
}

impl Stream {
    fn tag(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Out => 2,
            Self::Err => 3,
        }
    }

    fn of(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Data),
            2 => Some(Self::Out),
            3 => Some(Self::Err),
            _ => None,
        }
    }
}

/// A frame that arrived.
#[derive(Debug)]
pub enum Frame<'a> {
    /// Bytes of a stream.
    Bytes(Stream, &'a [u8]),
    /// A message: its tag and its fields.
    Message(u8, &'a [u8]),
}

/// Why there is no frame.
#[derive(Debug)]
pub enum FrameError {
    /// The stream could not be read.
    Read(io::Error),
    /// It ended within a frame.
    Cut,
    /// A frame says that it is longer than any.
    TooLong(u32),
    /// Its message is none.
    Malformed(Malformed),
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(error) => error.fmt(out),
            Self::Cut => out.write_str("the stream ended within a message"),
            Self::TooLong(length) => write!(out, "a message of {length} bytes is none"),
            Self::Malformed(error) => error.fmt(out),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<Malformed> for FrameError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

/// Reads frames.
#[derive(Debug)]
pub struct Frames<R> {
    from: R,
    payload: Vec<u8>,
}

impl<R: Read> Frames<R> {
    /// Of `from`, which should read ahead: a frame takes two reads.
    pub fn new(from: R) -> Self {
        Self {
            from,
            payload: Vec::new(),
        }
    }

    /// What it reads from.
    pub fn source(&mut self) -> &mut R {
        &mut self.from
    }

    /// The payload of the last frame.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The next frame; none at the end of the stream.
    pub fn frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let mut head = [0; 5];
        match fill(&mut self.from, &mut head)? {
            0 => return Ok(None),
            5 => {}
            _ => return Err(FrameError::Cut),
        }
        let [tag, length @ ..] = head;
        let length = u32::from_be_bytes(length);
        let count = usize::try_from(length).unwrap_or(usize::MAX);
        if count > PAYLOAD_LIMIT {
            return Err(FrameError::TooLong(length));
        }
        self.payload.clear();
        // Room is made as it arrives, for the length is somebody else's word.
        let read = (&mut self.from)
            .take(u64::from(length))
            .read_to_end(&mut self.payload)
            .map_err(FrameError::Read)?;
        if read < count {
            return Err(FrameError::Cut);
        }
        Ok(Some(match Stream::of(tag) {
            Some(stream) => Frame::Bytes(stream, &self.payload),
            None => Frame::Message(tag, &self.payload),
        }))
    }
}

/// Reads until the buffer is full or the stream ends; how much it read.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, FrameError> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Read(error)),
        }
    }
    Ok(read)
}

/// Appends a frame with the fields that `fields` appends.
pub fn put(out: &mut Vec<u8>, tag: u8, fields: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fields(out);
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a frame of bytes.
pub fn put_bytes(out: &mut Vec<u8>, stream: Stream, bytes: &[u8]) {
    put(out, stream.tag(), |out| out.extend_from_slice(bytes));
}

impl crate::Request {
    /// Appends it as a frame.
    pub fn frame(&self, out: &mut Vec<u8>) {
        put(out, self.tag(), |out| self.put(out));
    }
}

impl crate::Reply {
    /// Appends it as a frame.
    pub fn frame(&self, out: &mut Vec<u8>) {
        put(out, self.tag(), |out| self.put(out));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Base, Command, Reply, Request, Seed, SyncRequest};

    fn requests() -> impl Strategy<Value = Request> {
        let text = ".{0,40}";
        let seed = (
            text,
            text,
            proptest::option::of(prop::collection::vec(text, 0..4)),
        )
            .prop_map(|(id, head, refs)| Seed {
                branch: head.chars().rev().collect(),
                origin: String::new(),
                base: refs.map(|refs| Base { id: id.clone(), refs }),
                id,
                head,
            });
        let sync = (text, any::<[bool; 3]>(), proptest::option::of(seed)).prop_map(
            |(name, [delete, reset, distrust], seed)| Request::Sync {
                sync: SyncRequest {
                    lease_dir: "/work/cbx_1".to_owned(),
                    fingerprint: name.clone(),
                    base: String::new(),
                    name,
                    delete,
                    reset,
                    distrust,
                    seed,
                },
            },
        );
        let run = (
            prop::collection::vec(text, 0..5),
            prop::collection::vec((text, text), 0..5),
            any::<bool>(),
        )
            .prop_map(|(words, env, make)| Request::Run {
                command: Command {
                    workdir: "/w".to_owned(),
                    input: make,
                    tells: String::new(),
                    words,
                    env,
                    noted: !make,
                },
            });
        let file = (
            any::<u32>(),
            any::<i64>(),
            prop::collection::vec(any::<u8>(), 0..50),
        )
            .prop_map(|(number, seconds, target)| Request::Link {
                number,
                seconds,
                nanoseconds: number,
                target,
            });
        prop_oneof![
            sync,
            run,
            file,
            Just(Request::Release {}),
            any::<u64>().prop_map(|bytes| Request::Hole { bytes })
        ]
    }

    /// Gives one byte at a time.
    struct Slowly<'a>(&'a [u8]);

    impl Read for Slowly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(1);
            self.0.read(&mut buffer[..count])
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives_and_nothing_else(requests in prop::collection::vec(requests(), 1..6), piece in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut sent = Vec::new();
            for request in &requests {
                request.frame(&mut sent);
                put_bytes(&mut sent, Stream::Data, &piece);
            }
            let mut frames = Frames::new(Slowly(&sent));
            for request in &requests {
                let Some(Frame::Message(tag, payload)) = frames.frame().unwrap() else { panic!("no message") };
                prop_assert_eq!(&Request::take(tag, payload).unwrap(), request);
                let Some(Frame::Bytes(Stream::Data, bytes)) = frames.frame().unwrap() else { panic!("no bytes") };
                prop_assert_eq!(bytes, piece.as_slice());
            }
            prop_assert!(frames.frame().unwrap().is_none());
            // Cut anywhere, it is no frame, and never another one.
            let cut = sent.len() - 1;
            let mut frames = Frames::new(&sent[..cut]);
            let error = loop {
                match frames.frame() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the end was cut off"),
                    Err(error) => break error,
                }
            };
            prop_assert!(matches!(error, FrameError::Cut));
        }

        #[test]
        fn bytes_that_nobody_meant_are_refused_and_fill_no_memory(bytes in prop::collection::vec(any::<u8>(), 0..300), tag in any::<u8>()) {
            let mut frames = Frames::new(bytes.as_slice());
            while let Ok(Some(_)) = frames.frame() {}
            prop_assert!(frames.payload.capacity() <= 4096);
            // A message of such bytes says the same again, or is none.
            if let Ok(request) = Request::take(tag, &bytes) {
                let mut again = Vec::new();
                request.put(&mut again);
                prop_assert_eq!(again, bytes.clone());
            }
            if let Ok(reply) = Reply::take(tag, &bytes) {
                let mut again = Vec::new();
                reply.put(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }

    #[test]
    fn a_frame_that_claims_a_gigabyte_is_refused_at_its_head() {
        let head = [1, 0x40, 0, 0, 0];
        let error = Frames::new(head.as_slice()).frame().unwrap_err();
        assert!(matches!(error, FrameError::TooLong(0x4000_0000)));
        // And one that claims what may be, without it, reserves nothing.
        let mut frames = Frames::new([1, 0, 0x3f, 0, 0, 7].as_slice());
        assert!(matches!(frames.frame(), Err(FrameError::Cut)));
        assert!(frames.payload.capacity() < 4096);
    }
}
