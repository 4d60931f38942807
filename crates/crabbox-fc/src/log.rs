//! Lines of Firecracker's log that explain why a machine did not boot or ended.
//!
//! Each pattern is a text that Firecracker 1.12.1 contains. An unknown line explains nothing. No line may be
//! interpreted beyond its text: the caller decides what follows from a cause.

/// The cause that a line of the log reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogCause {
    /// KVM cannot be used at all: no device, no permission, or the wrong version.
    KvmUnusable,
    /// KVM gave up on the guest: usually broken or badly nested hardware virtualization.
    KvmInternalError,
    /// KVM could not enter the guest.
    KvmEntryFailed,
    /// The kernel file is not an uncompressed ELF kernel.
    BadKernel,
    /// The tap device cannot be opened: absent, in another namespace, or in use.
    TapUnusable,
    /// The API socket's name was taken.
    ApiSocketTaken,
    /// Firecracker made a system call that its filter forbids.
    SeccompViolation,
    /// Firecracker itself is broken.
    Panicked,
    /// The guest reset or stopped itself: the ordinary end.
    GuestStopped,
}

/// Texts with their causes; the first one found in a line applies.
const PATTERNS: [(&str, LogCause); 12] = [
    ("Error creating KVM object", LogCause::KvmUnusable),
    (
        "The host kernel reports an invalid KVM API version",
        LogCause::KvmUnusable,
    ),
    ("Missing KVM capabilities", LogCause::KvmUnusable),
    ("Received KVM_EXIT_INTERNAL_ERROR", LogCause::KvmInternalError),
    ("Received KVM_EXIT_FAIL_ENTRY", LogCause::KvmEntryFailed),
    ("failed to load ELF kernel image", LogCause::BadKernel),
    ("Cannot open/create the tap device", LogCause::TapUnusable),
    ("Failed to open the API socket", LogCause::ApiSocketTaken),
    ("intercepting signal 31", LogCause::SeccompViolation),
    ("Firecracker panicked at", LogCause::Panicked),
    ("Received KVM_EXIT_SHUTDOWN", LogCause::GuestStopped),
    ("Firecracker exiting successfully", LogCause::GuestStopped),
];

/// The cause that `line` reports, if any.
pub fn cause(line: &str) -> Option<LogCause> {
    PATTERNS
        .iter()
        .find(|(text, _)| line.contains(text))
        .map(|(_, cause)| *cause)
}

/// The first line of `log` that reports a cause, with the cause: later lines are consequences.
pub fn first_cause(log: &str) -> Option<(LogCause, &str)> {
    log.lines()
        .find_map(|line| cause(line).map(|cause| (cause, line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_explaining_line_of_a_real_log_counts() {
        // Firecracker 1.12.1, started with a socket path that already exists.
        let log = "2026-11-24T08:36:22.396988824 [ok:main] Running Firecracker v1.12.1\n\
            2026-11-24T08:36:22.397108883 [ok:main] RunWithApiError error: Failed to open the API socket at: /s. Check that \
            it is not already used.\n\
            2026-11-24T08:36:22.397131557 [ok:main] Firecracker exiting with error. exit_code=1\n";
        let (cause, line) = first_cause(log).unwrap();
        assert_eq!(cause, LogCause::ApiSocketTaken);
        assert!(line.contains("RunWithApiError"));
    }

    #[test]
    fn a_refused_start_and_a_panic_are_told_apart_from_chatter() {
        let refused = "[golden:fc_api] Received Error. Status code: 400 Bad Request. Message: Start microvm error: System \
            configuration error: Cannot load kernel due to invalid memory configuration or invalid kernel image: Kernel \
            Loader: failed to load ELF kernel image: Kernel Loader: Invalid Elf magic number";
        assert_eq!(cause(refused), Some(LogCause::BadKernel));
        let panicked =
            "[anonymous-instance:main] Firecracker panicked at src/firecracker/src/main.rs:291:48:";
        assert_eq!(cause(panicked), Some(LogCause::Panicked));
        assert_eq!(
            cause("[golden:fc_api] The API server received a Get request on \"/\"."),
            None
        );
    }
}
