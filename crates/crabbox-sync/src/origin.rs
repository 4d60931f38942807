//! The URL of a remote in a form that may be shown to others: in a lease, a log, a message.
//!
//! Users put tokens into the URLs of their remotes, so git's answer is converted to an [`OriginUrl`] where it
//! is read, and nothing else leaves that place. It must never contain a password, nor a user name that may be
//! a token.

use std::fmt;

/// A remote's URL without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginUrl(String);

impl OriginUrl {
    /// Parses a remote's address from git's configuration (git-fetch(1), GIT URLS): a URL,
    /// `[user@]host:path`, or a path. `None` if a secret in it cannot be separated from the rest.
    pub fn of(address: &str) -> Option<Self> {
        match address.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => url(scheme, rest),
            // A remote helper interprets the rest as it likes: gitremote-helpers(7).
            _ if address.contains("::") => None,
            _ => scp_like(address),
        }
        .map(Self)
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OriginUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether it is a URL scheme, with or without a remote helper before it (`helper::https`).
fn is_scheme(text: &str) -> bool {
    let known = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    match text.split_once("::") {
        Some((helper, scheme)) => known(helper) && known(scheme),
        None => known(text),
    }
}

fn url(scheme: &str, rest: &str) -> Option<String> {
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let after_brackets = host.rsplit_once(']').map_or(host, |(_, port)| port);
    let port = after_brackets.split_once(':').map(|(_, port)| port);
    // A password may contain any character, unescaped by mistake; then it does not end at this `@`.
    let is_nowhere = authority.is_empty() && scheme != "file";
    let is_split = (user.is_some() || port.is_some() || is_nowhere) && tail.contains('@');
    if is_split || !port.unwrap_or_default().bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // A query or fragment is not part of a repository's URL, and may be a token.
    let path = &tail[..tail.find(['?', '#']).unwrap_or(tail.len())];
    // With ssh, the user is an account. With other schemes, a user alone is a usual form of a token.
    let account = user.filter(|user| scheme.ends_with("ssh") && !user.contains(':'));
    Some(match account {
        Some(account) => format!("{scheme}://{account}@{host}{path}"),
        None => format!("{scheme}://{host}{path}"),
    })
}

/// `[user@]host:path`, or a path of this machine.
fn scp_like(address: &str) -> Option<String> {
    let (head, tail) = address.split_at(address.find('/').unwrap_or(address.len()));
    if head.contains(':') && tail.contains('@') {
        return None;
    }
    match head.rsplit_once('@') {
        // git itself takes the part before the first colon as the host, but the user who wrote this meant a
        // password.
        Some((user, _)) if user.contains(':') => Some(address[user.len() + 1..].to_owned()),
        _ => Some(address.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(address: &str) -> Option<String> {
        OriginUrl::of(address).map(|url| url.to_string())
    }

    #[test]
    fn an_address_loses_its_secret_and_nothing_else() {
        for (address, seen) in [
            ("https://me:s3cret@h.invalid/x.git", "https://h.invalid/x.git"),
            ("https://s3cret@h.invalid:8443/x", "https://h.invalid:8443/x"),
            ("https://me:s3@cret@h.invalid/x", "https://h.invalid/x"),
            ("https://me:s3cret@h.invalid", "https://h.invalid"),
            ("https://h.invalid/x?access_token=s3cret", "https://h.invalid/x"),
            ("https://h.invalid/x#s3cret", "https://h.invalid/x"),
            ("ssh://me:s3cret@h.invalid/x", "ssh://h.invalid/x"),
            ("git+ssh://git@h.invalid:22/x", "git+ssh://git@h.invalid:22/x"),
            ("ftp://s3cret@h.invalid/x", "ftp://h.invalid/x"),
            ("me:s3cret@h.invalid:me/x.git", "h.invalid:me/x.git"),
            ("https://h.invalid/x@y", "https://h.invalid/x@y"),
            ("https://[::1]:80/x", "https://[::1]:80/x"),
            ("ssh://git@h.invalid/x", "ssh://git@h.invalid/x"),
            ("git@h.invalid:me/x", "git@h.invalid:me/x"),
            ("/srv/x", "/srv/x"),
            ("../a@b:c/x", "../a@b:c/x"),
            ("file:///srv/x", "file:///srv/x"),
        ] {
            assert_eq!(of(address).as_deref(), Some(seen), "{address}");
        }
        for untold in [
            "https://me:s3cret/x@h.invalid/y",
            "https://me:3/s3cret@h.invalid/y",
            "https://me:a@b/s3cret@h.invalid/y",
            "https://me:3?s3cret@h.invalid/y",
            "me:///s3cret@h.invalid:y",
            "me:3/s3cret@h.invalid:y",
            "ext::helper --token s3cret",
            "x::s3cret",
        ] {
            assert_eq!(of(untold), None, "{untold}");
        }
    }

    proptest! {
        #[test]
        fn a_password_never_stays(
            scheme in "(https?|ssh|git|ftp|x::https)",
            user in "[a-z]{0,5}",
            password in "[0-9a-z@:._~/-]{0,8}S3CRET[0-9a-z@:._~/-]{0,8}",
            path in "[a-z/.]{0,12}",
        ) {
            for address in [
                format!("{user}:{password}@h.invalid:{path}"),
                format!("{scheme}://{user}:{password}@h.invalid/{path}"),
                format!("{scheme}://h.invalid/{path}?token={password}"),
            ] {
                let seen = of(&address);
                prop_assert!(!seen.clone().unwrap_or_default().contains("S3CRET"), "{address}: {seen:?}");
            }
        }
    }
}
