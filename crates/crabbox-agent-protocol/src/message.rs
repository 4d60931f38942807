//! The messages: requests to the agent and its replies.
//!
//! One request is answered before the next is sent. A path in a message must never be trusted to be below the
//! tree.

use crate::wire::{messages, record};

record! {
    /// The base of the branch (`sync.baseRef`).
    pub struct Base {
        /// The commit, hex.
        pub id: String,
        /// The refs that point to it in the lease's repository.
        pub refs: Vec<String>,
    }
}

record! {
    /// The state that the repository in the lease is to have.
    pub struct Seed {
        /// Identifies all of it; if it is unchanged, the lease's repository needs nothing.
        pub id: String,
        /// The commit, hex; empty on an unborn branch.
        pub head: String,
        /// The branch; empty when detached.
        pub branch: String,
        /// The URL of the origin without secrets; empty when there is none.
        pub origin: String,
        /// What the branch is based on, with the history up to there.
        pub base: Option<Base>,
    }
}

record! {
    /// The parameters of a sync.
    pub struct SyncRequest {
        /// `<workRoot>/<leaseID>`.
        pub lease_dir: String,
        /// The directory in it.
        pub name: String,
        /// Equal to that of the last sync only if nothing changed on the client.
        pub fingerprint: String,
        /// The fingerprint of the manifest since which the client knows the changes; empty when there is
        /// none.
        pub base: String,
        /// Remove what earlier syncs brought and is no longer in the manifest.
        pub delete: bool,
        /// Remove the workdir first.
        pub reset: bool,
        /// Do not trust the record: compare everything.
        pub distrust: bool,
        /// The repository that the workdir is to be, if any.
        pub seed: Option<Seed>,
    }
}

record! {
    /// A command to run.
    pub struct Command {
        /// The working directory, absolute.
        pub workdir: String,
        /// The program and its arguments.
        pub words: Vec<String>,
        /// Variables that it gets in addition to the agent's own.
        pub env: Vec<(String, String)>,
        /// The name of a variable that is set to the pid of the process waiting for the command; empty for
        /// none. The command sends `SIGUSR1` to that pid once its shell start-up files were read.
        pub tells: String,
        /// Whether its standard input follows as a list; otherwise it is `/dev/null`.
        pub input: bool,
        /// Whether the next client that wants the tree must wait for this command.
        pub noted: bool,
    }
}

messages! {
    /// Requests to the agent. Lists that follow a message are sent as chunks ([`crate::Stream::Data`]) and
    /// [`Request::End`].
    pub enum Request {
        /// Wait for ownership of the tree: [`Reply::Busy`] and [`Reply::Child`] while that lasts, then
        /// [`Reply::Owned`]; then, if `make` is given, the reply to [`Request::Make`]. No other request may
        /// be sent before it is owned.
        16 => Own {
            /// The name of the lock, hex.
            key: String,
            /// Identifies this owner, 64 hexadecimal digits.
            token: String,
            /// A directory to make as soon as the tree is owned, absolute.
            make: Option<String>,
        },
        /// Release the tree. [`Reply::Released`].
        17 => Release {},
        /// Check whether the tree is as the last sync left it. Not answered; the result is used for the next
        /// [`Request::Sync`].
        18 => Look {
            /// `<workRoot>/<leaseID>`.
            lease_dir: String,
            /// The directory in it.
            name: String,
        },
        /// Begin a sync. [`Reply::Same`]; or [`Reply::Patch`] or [`Reply::Differs`], which ask for lists.
        19 => Sync {
            /// The parameters.
            sync: SyncRequest,
        },
        /// The end of a list.
        20 => End {},
        /// A directory. Contents follow until [`Request::Finish`], [`Request::Pack`] or
        /// [`Request::Received`].
        21 => Directory {
            /// Below the workdir.
            path: Vec<u8>,
            /// Permission bits.
            mode: u32,
            /// When it was modified, in unix seconds, if that is to be kept.
            seconds: Option<i64>,
        },
        /// A file, whose chunks and holes follow.
        22 => File {
            /// Its place in the manifest.
            number: u32,
            /// Permission bits.
            mode: u32,
            /// When it was modified, unix seconds.
            seconds: i64,
            /// And nanoseconds.
            nanoseconds: u32,
        },
        /// A hole in the file: zeros.
        23 => Hole {
            /// How many bytes.
            bytes: u64,
        },
        /// A symbolic link.
        24 => Link {
            /// Its place in the manifest.
            number: u32,
            /// When it was modified, unix seconds.
            seconds: i64,
            /// And nanoseconds.
            nanoseconds: u32,
            /// Where it leads.
            target: Vec<u8>,
        },
        /// All contents were sent. [`Reply::Received`].
        25 => Received {},
        /// The repository follows, one list each: the staged changes, the marks, the settings, the
        /// attributes, the ignore rules, the commits without parents, the pack. [`Reply::Seeded`] or [`Reply::Unseeded`].
        26 => Pack {
            /// Identifies the objects that the client itself does not have (it is a partial clone), hex;
            /// empty if it has all of them. The next [`Reply::Stale`] repeats it.
            lacks: String,
            /// Whether the base that was asked for comes with it.
            based: bool,
        },
        /// Write the record of the sync. [`Reply::Done`].
        27 => Finish {},
        /// List what has changed since the last sync: `<state> <identity> <mode> <path>` records, NUL after
        /// each.
        28 => Changes {
            /// `<workRoot>/<leaseID>`.
            lease_dir: String,
            /// The directory in it.
            name: String,
        },
        /// Run a command. Chunks of its streams, then [`Reply::Exited`] or [`Reply::Unstarted`].
        29 => Run {
            /// The command.
            command: Command,
        },
        /// End the running command and all of its process group.
        30 => Stop {},
        /// List the files below a directory that match patterns, and the targets of matching links if they
        /// are below the directory too. A list of `<kind><text>` records, NUL after each: `f` and a path; `d`
        /// and a further path of a file that was already listed; `p` and why something that a pattern names
        /// cannot be examined or is not a file; `w` and the same for something that a pattern only might have
        /// meant.
        31 => List {
            /// The directory, absolute.
            dir: String,
            /// The patterns, see [`crate::Glob`]; directories in which none can match are not read.
            patterns: Vec<String>,
            /// Directories of these names are skipped.
            skipped: Vec<String>,
            /// Only files written since the last command of this agent began.
            written: bool,
            /// Whether a file with several names is `f` under only one of them, its own if that is among
            /// them, and `d` under the others.
            once: bool,
        },
        /// Send the contents of files, whose paths follow as a list: for each in order [`Reply::File`] and
        /// its chunks, or [`Reply::Problem`]; then [`Reply::End`].
        32 => Fetch {
            /// The directory that they are below, as in [`Request::Tree`].
            dir: String,
            /// Whether a link in the last component of a path is followed.
            follow: bool,
            /// Whether to send only files below the directory, wherever links lead.
            within: bool,
            /// Larger files are not sent, in bytes.
            limit: Option<u64>,
        },
        /// Make a directory and its parents. [`Reply::Made`].
        33 => Make {
            /// The directory, absolute.
            dir: String,
        },
        /// List what is at a path and below it, the path itself first. A list of `<kind><path>` records, NUL
        /// after each: the kind is the letter of `find -type`; paths are relative to the first, which is
        /// empty.
        34 => Tree {
            /// The path; `~` and a leading `~/` mean the home directory, and a relative path starts where a
            /// login does.
            path: String,
            /// Whether links are followed.
            follow: bool,
        },
        /// Receive a copy at a path. A list of names follows, to whose indexes files and links refer; then
        /// directories, files and links as in a sync, all of them at or below `c`, and [`Request::Received`].
        /// Answered with [`Reply::Received`] once everything is in place.
        35 => Put {
            /// The destination, as in [`Request::Tree`].
            to: String,
            /// Its name, if the destination is an existing directory.
            name: String,
            /// Whether the destination is a directory, which is created.
            make: bool,
        },
        /// Measure the disk usage of a directory. [`Reply::Sized`].
        36 => Size {
            /// The directory, absolute.
            dir: String,
        },
        /// Empty a directory, but keep it, and do not follow a link in its place. [`Reply::Cleared`].
        37 => Clear {
            /// The directory, absolute.
            dir: String,
        },
        /// Hash files, whose paths follow as a list; links are not followed. A list of `<kind><digest>`
        /// records, NUL after each: `f` and the SHA-256 of a file's contents in hex; `l` and that of a link's
        /// target; `-` for anything else and for what cannot be read.
        40 => Digest {
            /// The directory that they are below, absolute.
            dir: String,
        },
        /// The client is still there. May be sent between any two other messages, even where no request is
        /// allowed, and is not answered.
        38 => Ping {},
    }
}

messages! {
    /// Replies of the agent.
    pub enum Reply {
        /// The greeting.
        64 => Hello {
            /// [`crate::HELLO`].
            word: u32,
            /// Whether the lease has an rsync.
            rsync: bool,
        },
        /// Another client owns the tree.
        65 => Busy {},
        /// A command whose client has gone still runs in the tree.
        66 => Child {},
        /// This client owns the tree.
        67 => Owned {
            /// Whether the last owner ended without releasing the tree.
            recovered: bool,
        },
        /// The tree was released.
        68 => Released {},
        /// Nothing to do.
        69 => Same {},
        /// Send the manifest, then the paths whose content differs from git's index.
        70 => Differs {},
        /// Send what changed since the base, what was removed since, then the paths whose content differs
        /// from git's index.
        71 => Patch {},
        /// Send these entries; unless `all` is set, a list of their four-byte numbers follows.
        72 => Stale {
            /// All of them.
            all: bool,
            /// Whether the repository is needed.
            seed: bool,
            /// The commit that it has from the last seed, hex, or empty.
            have: String,
            /// The base that it was given then, hex, or empty.
            have_base: String,
            /// What [`Request::Pack`] said then of objects that were left out.
            lacks: String,
            /// The directory below `tmp` for files in the making of another program's, hex. It goes with the
            /// conversation: what such a program still brings when the tree is somebody else's gets nowhere.
            stage: String,
        },
        /// The files arrived.
        73 => Received {},
        /// The repository is as requested.
        74 => Seeded {},
        /// The repository could not be set up; the sync goes on.
        75 => Unseeded {
            /// Why.
            why: String,
        },
        /// The record was written.
        76 => Done {
            /// How many entries are not as requested.
            unsettled: u64,
            /// Why git's index does not match the client's, if it does not; the sync itself succeeded.
            unseeded: Option<String>,
        },
        /// The request failed. Further messages of the same sync are ignored.
        77 => Failed {
            /// The path and the reason.
            why: String,
        },
        /// The end of a list.
        78 => End {},
        /// The command has ended.
        79 => Exited {
            /// Its exit code; 128 plus the signal number if a signal ended it.
            code: u32,
            /// Whether it has signalled that its start-up files were read.
            told: bool,
        },
        /// The command could not be started.
        80 => Unstarted {
            /// What the system said.
            why: String,
            /// Whether there is no such program.
            absent: bool,
        },
        /// The command was ended.
        81 => Stopped {
            /// Whether its process group is known to be gone.
            gone: bool,
        },
        /// A file whose chunks follow, `size` bytes in total.
        82 => File {
            /// Its place in the list.
            number: u32,
            /// Permission bits.
            mode: u32,
            /// When it was modified, unix seconds.
            seconds: i64,
            /// How many bytes it has.
            size: u64,
        },
        /// A file that could not be read, or that changed while it was sent.
        83 => Problem {
            /// Its place in the list; beyond the end of the list if it is not an item of it.
            number: u32,
            /// The path and the reason.
            text: String,
            /// Whether its contents were not sent.
            lost: bool,
        },
        /// The directory is there.
        84 => Made {},
        /// The disk usage of a directory.
        85 => Sized {
            /// Whether there is such a directory.
            found: bool,
            /// The number of bytes, as far as it can be read; a file with several names counts once.
            bytes: u64,
        },
        /// The directory is empty or does not exist.
        86 => Cleared {},
    }
}
