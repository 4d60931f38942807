//! Why a provider failed: the unchanged error of the operation, and what a command may do about it.
//!
//! Each provider converts its own errors, in its own modules. This module must never name an error of a
//! provider.

use std::error::Error;
use std::fmt;

use crabbox_core::fault::{Connectivity, Fault, Kind};

/// What a command can do about an error before it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// This host was never set up; offer to set it up.
    SetUp,
    /// Nothing is left of the attempt, and another try may succeed.
    Again,
}

/// Why a provider failed. Its texts and its exit code are those of the error that it carries.
#[derive(Debug)]
pub struct LeaseError {
    fault: Box<dyn Fault>,
    remedy: Option<Recovery>,
    console: Vec<String>,
}

impl LeaseError {
    /// Wraps the error of a provider's operation.
    pub fn new(fault: impl Fault + 'static) -> Self {
        Self {
            fault: Box::new(fault),
            remedy: None,
            console: Vec::new(),
        }
    }

    /// The same error with its remedy.
    #[must_use]
    pub(crate) fn with_remedy(self, remedy: Option<Recovery>) -> Self {
        Self { remedy, ..self }
    }

    /// The same error with the end of the console of the machine that did not come up.
    #[must_use]
    pub(crate) fn with_console(self, console: Vec<String>) -> Self {
        Self { console, ..self }
    }

    /// What can be done about it.
    pub(crate) fn remedy(&self) -> Option<Recovery> {
        self.remedy
    }

    /// The end of the console of a machine that did not come up.
    pub fn console(&self) -> &[String] {
        &self.console
    }
}

impl fmt::Display for LeaseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.fault, formatter)
    }
}

impl Error for LeaseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.fault.source()
    }
}

impl Fault for LeaseError {
    fn kind(&self) -> Kind {
        self.fault.kind()
    }

    fn connectivity(&self) -> Option<Connectivity> {
        self.fault.connectivity()
    }

    fn hints(&self) -> Vec<String> {
        self.fault.hints()
    }
}

#[cfg(test)]
mod tests {
    use crabbox_core::fault;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    impl Fault for Outer {
        fn kind(&self) -> Kind {
            Kind::Passthrough(9)
        }

        fn connectivity(&self) -> Option<Connectivity> {
            Some(Connectivity::Lost)
        }

        fn hints(&self) -> Vec<String> {
            vec!["do this".to_owned()]
        }
    }

    #[test]
    fn it_is_in_all_the_error_that_it_carries() {
        let error = LeaseError::new(Outer(std::io::Error::other("inner")));
        // The wrapper adds no link to the chain, so each message appears once.
        assert_eq!(fault::chain(&error), "outer: inner");
        assert_eq!(
            (error.kind(), error.connectivity(), error.hints()),
            (
                Kind::Passthrough(9),
                Some(Connectivity::Lost),
                vec!["do this".to_owned()]
            )
        );
        assert_eq!((error.remedy(), error.console()), (None, &[][..]));
        let more = error
            .with_remedy(Some(Recovery::Again))
            .with_console(vec!["panic".to_owned()]);
        assert_eq!(
            (more.remedy(), more.console()),
            (Some(Recovery::Again), &["panic".to_owned()][..])
        );
    }
}
