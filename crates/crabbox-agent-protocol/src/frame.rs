//! Frames, which separate messages and byte streams within one stream.
//!
//! A reader holds one frame at a time. It must never wait for more bytes than the frame announces, nor take
//! the end of the stream within a frame for a regular end.
//!
//! Other programs that share the agent's stream may write into it, such as one that a start-up file of its
//! login shell left running. So a frame has marks: foreign output between two frames is recognised, and
//! foreign output within a frame makes it invalid.

use std::io::{self, BufRead, Read};

use crate::wire::Malformed;

/// The longest payload, in bytes: the variables of a command may have two mebibytes.
pub const PAYLOAD_LIMIT: usize = 4 << 20;

/// Begins a frame. No text has these bytes in any byte-based encoding.
const MARK: [u8; 4] = [0xfe, b'c', b'b', 0xff];

/// Ends a frame.
const END: [u8; 4] = [0xff, b'b', b'c', 0xfe];

/// Mark, tag and length.
const HEAD: usize = MARK.len() + 5;

/// How much foreign output is skipped between two frames, in bytes.
const FOREIGN_LIMIT: usize = 1 << 20;

/// How much of the foreign output is kept for a message, in bytes: its beginning.
const FOREIGN_KEPT: usize = 256;

/// Files and lists are sent in pieces of this many bytes.
pub const PIECE: usize = 128 * 1024;

/// A stream of bytes within the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// A piece of a file or of a list.
    Data,
    /// The command's standard output.
    Out,
    /// The command's standard error.
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
    /// The stream ended within a frame.
    Cut,
    /// A frame announces more than [`PAYLOAD_LIMIT`] bytes.
    TooLong(u32),
    /// Its message is malformed.
    Malformed(Malformed),
    /// Foreign output where none is allowed, or more of it than is skipped.
    Foreign(String),
    /// The end mark is missing where it should be: another program has written into the frame.
    Mixed,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(error) => error.fmt(out),
            Self::Cut => out.write_str("the stream ended within a message"),
            Self::TooLong(length) => write!(out, "invalid message length: {length} bytes"),
            Self::Malformed(error) => error.fmt(out),
            Self::Foreign(text) => write!(out, "something that is not a message: {text:?}"),
            Self::Mixed => out.write_str("a message with something else in it"),
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
    /// Whether foreign output is skipped.
    is_shared: bool,
    /// The beginning of the foreign output.
    foreign: Vec<u8>,
    /// How much foreign output came since the last frame.
    passed: usize,
}

impl<R: Read> Frames<R> {
    /// Reads from `from`, which should be buffered because a frame takes four reads. No other program writes
    /// there, so foreign output is an error.
    pub fn new(from: R) -> Self {
        Self {
            from,
            payload: Vec::new(),
            is_shared: false,
            foreign: Vec::new(),
            passed: 0,
        }
    }

    /// Reads a stream into which other programs may write: foreign output between two frames is skipped.
    pub fn shared(from: R) -> Self {
        Self {
            is_shared: true,
            ..Self::new(from)
        }
    }

    /// The underlying reader.
    pub fn source(&mut self) -> &mut R {
        &mut self.from
    }

    /// The payload of the last frame.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The beginning of the foreign output, as text; `None` if there was none.
    pub fn foreign(&self) -> Option<String> {
        (!self.foreign.is_empty()).then(|| String::from_utf8_lossy(&self.foreign).trim().to_owned())
    }

    /// The next frame; `None` at the end of the stream.
    pub fn frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let Some((tag, length)) = self.head()? else {
            return Ok(None);
        };
        let count = usize::try_from(length).unwrap_or(usize::MAX);
        if count > PAYLOAD_LIMIT {
            return Err(FrameError::TooLong(length));
        }
        self.payload.clear();
        // The buffer grows as data arrives, because the announced length is not trusted.
        let read = (&mut self.from)
            .take(u64::from(length))
            .read_to_end(&mut self.payload)
            .map_err(FrameError::Read)?;
        let mut end = [0; END.len()];
        if read < count || fill(&mut self.from, &mut end)? < END.len() {
            return Err(FrameError::Cut);
        }
        if end != END {
            return Err(FrameError::Mixed);
        }
        self.passed = 0;
        Ok(Some(match Stream::of(tag) {
            Some(stream) => Frame::Bytes(stream, &self.payload),
            None => Frame::Message(tag, &self.payload),
        }))
    }

    /// The tag and the length of the next frame; `None` at the end of the stream.
    fn head(&mut self) -> Result<Option<(u8, u32)>, FrameError> {
        let mut head = [0; HEAD];
        let mut have = 0;
        loop {
            let read = fill(&mut self.from, &mut head[have..])?;
            have += read;
            let foreign = before_mark(&head[..have]);
            self.pass_over(&head[..foreign])?;
            head.copy_within(foreign..have, 0);
            have -= foreign;
            let [_, _, _, _, tag, length @ ..] = head;
            match (have, read) {
                (HEAD, _) => return Ok(Some((tag, u32::from_be_bytes(length)))),
                (0, 0) => return Ok(None),
                (_, 0) => return Err(FrameError::Cut),
                _ => {}
            }
        }
    }

    fn pass_over(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let room = FOREIGN_KEPT.saturating_sub(self.foreign.len());
        self.foreign.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.passed += bytes.len();
        if bytes.is_empty() || (self.is_shared && self.passed <= FOREIGN_LIMIT) {
            return Ok(());
        }
        Err(FrameError::Foreign(self.foreign().unwrap_or_default()))
    }
}

impl<R: BufRead> Frames<R> {
    /// Whether the buffered data holds the beginning of a frame, or something that [`Self::frame`] will
    /// report as an error. Foreign output before it is skipped; false if there is nothing else. Does not
    /// block if data is buffered.
    pub fn begins(&mut self) -> bool {
        let Ok(ahead) = self.from.fill_buf() else {
            return true;
        };
        let (have, foreign) = (ahead.len(), before_mark(ahead));
        let passed = ahead[..foreign].to_vec();
        if foreign == 0 || !self.is_shared || self.passed + foreign > FOREIGN_LIMIT {
            return true;
        }
        self.from.consume(foreign);
        self.pass_over(&passed).is_err() || foreign < have
    }
}

/// How many bytes come before a mark or what may be the beginning of one.
fn before_mark(bytes: &[u8]) -> usize {
    let may_begin = |at: &usize| {
        let there = &bytes[*at..];
        let count = there.len().min(MARK.len());
        there[..count] == MARK[..count]
    };
    (0..bytes.len()).find(may_begin).unwrap_or(bytes.len())
}

/// Reads until the buffer is full or the stream ends; returns how much it read.
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
    out.extend_from_slice(&MARK);
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fields(out);
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&END);
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
            Just(Request::Ping {}),
            any::<u64>().prop_map(|bytes| Request::Hole { bytes })
        ]
    }

    /// A reader that returns one byte at a time.
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
            // A truncated stream is an error, and never yields a wrong frame.
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
        fn what_others_write_between_frames_is_passed_over_and_within_one_it_is_told(
            requests in prop::collection::vec(requests(), 1..4),
            // Half a mark is not a mark; text that ends with its first byte may begin one and is held back.
            foreign in prop::collection::vec("[ -~\n\u{fe}]{0,30}".prop_map(String::into_bytes), 4),
            at in 1_usize..20,
            slowly in any::<bool>(),
        ) {
            let mut sent = Vec::new();
            for (request, foreign) in requests.iter().zip(&foreign) {
                sent.extend_from_slice(foreign);
                sent.extend_from_slice(&MARK[..2]);
                request.frame(&mut sent);
            }
            sent.extend_from_slice(&foreign[3]);
            let from: Box<dyn Read> = if slowly { Box::new(Slowly(&sent)) } else { Box::new(sent.as_slice()) };
            let mut frames = Frames::shared(from);
            for request in &requests {
                let Some(Frame::Message(tag, payload)) = frames.frame().unwrap() else { panic!("no message") };
                prop_assert_eq!(&Request::take(tag, payload).unwrap(), request);
                prop_assert_eq!(frames.passed, 0);
            }
            prop_assert!(frames.frame().unwrap().is_none());
            prop_assert_eq!(frames.passed, foreign[3].len());
            // No other program writes to an agent.
            let error = Frames::new(sent.as_slice()).frame().unwrap_err();
            prop_assert!(matches!(error, FrameError::Foreign(_)));
            // Buffered foreign output does not count as an answer.
            let mut ahead = Frames::shared(io::BufReader::new(foreign[0].as_slice()));
            prop_assert!(foreign[0].is_empty() || !ahead.begins());
            // Foreign output within a frame must not yield another frame.
            let mut mixed = Vec::new();
            put_bytes(&mut mixed, Stream::Data, &[7; 20]);
            put_bytes(&mut mixed, Stream::Data, &[8; 20]);
            mixed.splice(HEAD + at..HEAD + at, b"late".iter().copied());
            let error = Frames::shared(mixed.as_slice()).frame().unwrap_err();
            prop_assert!(matches!(error, FrameError::Mixed));
        }

        #[test]
        fn bytes_that_nobody_meant_are_refused_and_fill_no_memory(bytes in prop::collection::vec(any::<u8>(), 0..300), tag in any::<u8>()) {
            let mut frames = Frames::new(bytes.as_slice());
            while let Ok(Some(_)) = frames.frame() {}
            prop_assert!(frames.payload.capacity() <= 4096);
            // If the bytes are a message, encoding it gives the same bytes again.
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
        let head = |length: &[u8]| [&MARK, &[1][..], length].concat();
        let error = Frames::new(head(&[0x40, 0, 0, 0]).as_slice())
            .frame()
            .unwrap_err();
        assert!(matches!(error, FrameError::TooLong(0x4000_0000)));
        // A permitted length without the data must not reserve memory.
        let short = head(&[0, 0x3f, 0, 0, 7]);
        let mut frames = Frames::new(short.as_slice());
        assert!(matches!(frames.frame(), Err(FrameError::Cut)));
        assert!(frames.payload.capacity() < 4096);
    }
}
