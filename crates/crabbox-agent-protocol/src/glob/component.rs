//! Matches one component of a path, for every pattern of this program.
//!
//! `*` and `?` have no slash to match here. What is malformed must stand for itself, and time never grow faster
//! than the product of the lengths.

/// Whether one component of a path matches one of a pattern: `*`, `?`, `[a-z]`, `[!a-z]`, `\x`. With the usual
/// single backtrack to the last star.
pub fn component(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
            continue;
        }
        if let Some(width) = one(&pattern[p..], name[n]) {
            p += width;
            n += 1;
            continue;
        }
        let Some((star_p, star_n)) = star else {
            return false;
        };
        star = Some((star_p, star_n + 1));
        p = star_p + 1;
        n = star_n + 1;
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How many pattern bytes match the single byte `byte`, if they do.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'\\' if pattern.len() > 1 => (pattern[1] == byte).then_some(2),
        b'[' => match class(pattern, byte) {
            Class::Open => (byte == b'[').then_some(1),
            Class::Out => None,
            Class::In(width) => Some(width),
        },
        plain => (*plain == byte).then_some(1),
    }
}

/// How a bracket expression matches a byte.
enum Class {
    /// It is not closed, so it is not a bracket expression.
    Open,
    Out,
    /// The byte is in it; it spans this many bytes of the pattern.
    In(usize),
}

fn class(pattern: &[u8], byte: u8) -> Class {
    let mut at = 1;
    let negated = matches!(pattern.get(at), Some(b'^' | b'!'));
    at += usize::from(negated);
    let (start, mut found) = (at, false);
    while pattern.get(at).is_some_and(|next| *next != b']' || at == start) {
        let Some(low) = literal(pattern, &mut at) else {
            return Class::Open;
        };
        let mut high = low;
        if pattern.get(at) == Some(&b'-') && pattern.get(at + 1).is_some_and(|next| *next != b']') {
            at += 1;
            let Some(end) = literal(pattern, &mut at) else {
                return Class::Open;
            };
            high = end;
        }
        found |= (low..=high).contains(&byte);
    }
    match pattern.get(at) {
        Some(b']') if found != negated => Class::In(at + 1),
        Some(b']') => Class::Out,
        _ => Class::Open,
    }
}

fn literal(pattern: &[u8], at: &mut usize) -> Option<u8> {
    *at += usize::from(pattern.get(*at) == Some(&b'\\'));
    let byte = *pattern.get(*at)?;
    *at += 1;
    Some(byte)
}
