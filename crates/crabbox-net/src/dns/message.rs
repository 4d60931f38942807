//! The part of a DNS message (RFC 1035, section 4.1) that a forwarder must understand: header and question.
//! It parses bytes from a guest and must never trust a length in them.

/// Length of the header, in bytes.
const HEADER: usize = 12;

/// The longest name in a question, in bytes (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 255;

/// The server could not get an answer.
pub(super) const SERVFAIL: u8 = 2;

/// The server does not support the request.
pub(super) const NOTIMP: u8 = 4;

/// The server refuses to answer.
const REFUSED: u8 = 5;

/// The kind of a message from a guest: whether it may be passed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// One plain query: name, type and class, as they are in the message.
    Question(&'a [u8]),
    /// Any other operation, for example an update of the zone.
    Other,
    /// Not a DNS query.
    Noise,
}

/// Classifies `message`, which came from a guest.
pub(super) fn kind(message: &[u8]) -> Kind<'_> {
    let Some(header) = message.first_chunk::<HEADER>() else {
        return Kind::Noise;
    };
    if header[2] & 0x80 != 0 {
        return Kind::Noise;
    }
    // The operation code is bits 3 to 6; 0 is a query.
    if header[2] & 0x78 != 0 {
        return Kind::Other;
    }
    question(message).map_or(Kind::Noise, Kind::Question)
}

/// The one question of a message.
fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => break,
            // Larger values are compression pointers, which are not valid in a question.
            1..64 => at += length,
            _ => return None,
        }
        if at - HEADER > LONGEST_NAME {
            return None;
        }
    }
    message.get(HEADER..at + 4)
}

/// The transaction id.
pub(super) fn id(message: &[u8]) -> Option<[u8; 2]> {
    message.first_chunk().copied()
}

/// The same message with another transaction id.
pub(super) fn with_id(mut message: Vec<u8>, id: [u8; 2]) -> Vec<u8> {
    if let Some(place) = message.first_chunk_mut() {
        *place = id;
    }
    message
}

/// Whether `answer` matches `asked`, the query sent to a resolver: same id, same question (a resolver may
/// change the case of a name).
pub(super) fn answers(answer: &[u8], asked: &[u8]) -> bool {
    let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same_question = match (question(answer), question(asked)) {
        (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
        // A resolver that could not parse the query may leave the question out of its error reply.
        (None, Some(_)) => is_setback(answer) && answer.get(4..6) == Some([0, 0].as_slice()),
        _ => false,
    };
    is_response && same_question && id(answer) == id(asked)
}

/// Whether `answer` is only a failure of this resolver; another one may have an answer.
pub(super) fn is_setback(answer: &[u8]) -> bool {
    answer
        .get(3)
        .is_some_and(|flags| matches!(flags & 0x0f, SERVFAIL | NOTIMP | REFUSED))
}

/// Our own reply to `asked`: no records, only `code`.
pub(super) fn refusal(asked: &[u8], code: u8) -> Option<Vec<u8>> {
    let header = asked.first_chunk::<HEADER>()?;
    let question = question(asked).unwrap_or_default();
    // Response; operation code and "recursion desired" copied from the query; "recursion available".
    let mut answer = vec![header[0], header[1], 0x80 | (header[2] & 0x79), 0x80 | code];
    answer.extend([0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
    answer.extend(question);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02de\x00\x00\x01\x00\x01";

    fn changed(at: usize, byte: u8) -> Vec<u8> {
        let mut message = ASKED.to_vec();
        message[at] = byte;
        message
    }

    #[test]
    fn a_plain_question_is_told_from_everything_else() {
        assert_eq!(kind(ASKED), Kind::Question(b"\x02de\x00\x00\x01\x00\x01"));
        assert_eq!(kind(&changed(2, 0x81)), Kind::Noise, "an answer");
        assert_eq!(kind(&changed(2, 0x28)), Kind::Other, "an update");
        assert_eq!(kind(&changed(5, 2)), Kind::Noise, "two questions");
        assert_eq!(kind(&changed(12, 0xc0)), Kind::Noise, "a pointer");
        for length in 0..ASKED.len() {
            assert_eq!(kind(&ASKED[..length]), Kind::Noise, "cut at {length}");
        }
        let long = [
            &ASKED[..12],
            &[b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(5),
            b"\x00\x00\x01\x00\x01",
        ]
        .concat();
        assert_eq!(kind(&long), Kind::Noise, "a name of 320 bytes");
    }

    #[test]
    fn only_the_answer_to_this_very_question_counts() {
        let answer = changed(2, 0x81);
        assert!(answers(&answer, ASKED));
        assert!(answers(&with_case(&answer), ASKED));
        assert!(!answers(ASKED, ASKED), "a question is no answer");
        assert!(!answers(&with_id(answer.clone(), [0x12, 0x35]), ASKED));
        let mut other = answer.clone();
        other[14] = b'f';
        assert!(!answers(&other, ASKED), "another name");
        let mut bare = answer[..12].to_vec();
        bare[5] = 0;
        assert!(!answers(&bare, ASKED), "a success without its question");
        bare[3] = SERVFAIL;
        assert!(answers(&bare, ASKED));
    }

    fn with_case(answer: &[u8]) -> Vec<u8> {
        answer.to_ascii_uppercase()
    }

    #[test]
    fn a_refusal_repeats_the_question_and_nothing_more() {
        let with_extras = [&changed(11, 1), b"extra".as_slice()].concat();
        let refused = refusal(&with_extras, SERVFAIL).unwrap();
        assert_eq!(
            refused,
            b"\x12\x34\x81\x82\x00\x01\x00\x00\x00\x00\x00\x00\x02de\x00\x00\x01\x00\x01"
        );
        assert!(answers(&refused, ASKED) && is_setback(&refused));
    }
}
