//! The messages: what is asked of the agent, and what it answers.
//!
//! One question is answered before the next one is asked. A path in a message must never be taken for one below the tree because it says so.

use crate::wire::{messages, record};

record! {
    /// The base of the branch (`sync.baseRef`).
    pub struct Base {
        /// The commit, hex.
        pub id: String,
        /// The refs that lead to it there.
        pub refs: Vec<String>,
    }
}

record! {
    /// What the repository in the lease is to say.
    pub struct Seed {
        /// Stands for all of it; equal means that the lease's repository needs nothing.
        pub id: String,
        /// The commit, hex; empty on an unborn branch.
        pub head: String,
        /// The branch; empty when detached.
        pub branch: String,
        /// The origin's address without secrets; empty when there is none.
        pub origin: String,
        /// What the branch is based on, with the history up to there.
        pub base: Option<Base>,
    }
}

record! {
    /// What a sync asks for.
    pub struct SyncRequest {
        /// `<workRoot>/<leaseID>`.
        pub lease_dir: String,
        /// The directory in it.
        pub name: String,
        /// Equal to that of the last sync only if nothing changed on this side.
        pub fingerprint: String,
        /// The fingerprint of the manifest that this side can tell the changes since; empty when there is none.
        pub base: String,
        /// Prune what earlier syncs brought and the manifest has no more.
        pub delete: bool,
        /// Remove the workdir first.
        pub reset: bool,
        /// Do not believe the record: everything is to be compared.
        pub distrust: bool,
        /// The repository that the workdir is to be, if any.
        pub seed: Option<Seed>,
    }
}

record! {
    /// A command to run.
    pub struct Command {
        /// Where, absolute.
        pub workdir: String,
        /// The program and its arguments.
        pub words: Vec<String>,
        /// Variables that it gets besides those that the agent has.
        pub env: Vec<(String, String)>,
        /// The name of a variable that gets the number of the process which waits for it; empty for none. The command tells with `SIGUSR1` to that
        /// number that its start-up files are behind it.
        pub tells: String,
        /// Whether all of its standard input follows, as a list; without it that is `/dev/null`.
        pub input: bool,
        /// Whether it is the command that whoever wants the tree next must wait for.
        pub noted: bool,
    }
}

messages! {
    /// What is asked of the agent. Lists of bytes behind a message are pieces ([`crate::Stream::Data`]) and [`Request::End`].
    pub enum Request {
        /// Wait until nobody else is in the tree. [`Reply::Busy`] and [`Reply::Child`] while that lasts, then [`Reply::Owned`]; and then, where a
        /// directory is to be made, what [`Request::Make`] is answered. Who waits hears nothing: no other question may follow before.
        16 => Own {
            /// The name of the lock, hex.
            key: String,
            /// Names this owner, 64 hexadecimal digits.
            token: String,
            /// A directory to make as soon as the tree is owned, absolute.
            make: Option<String>,
        },
        /// Give the tree back. [`Reply::Released`].
        17 => Release {},
        /// Look whether the tree is as the last sync left it. Not answered: the next [`Request::Sync`] is, by what was seen.
        18 => Look {
            /// `<workRoot>/<leaseID>`.
            lease_dir: String,
            /// The directory in it.
            name: String,
        },
        /// Begin a sync. [`Reply::Same`]; or [`Reply::Patch`] or [`Reply::Differs`], which want lists.
        19 => Sync {
            /// What is wanted.
            sync: SyncRequest,
        },
        /// The end of a list.
        20 => End {},
        /// Contents follow, until [`Request::Finish`], [`Request::Pack`] or [`Request::Received`].
        21 => Directory {
            /// Below the workdir.
            path: Vec<u8>,
            /// Permission bits.
            mode: u32,
            /// When it was modified, unix seconds, where it is to keep that.
            seconds: Option<i64>,
        },
        /// A file, whose pieces and holes follow.
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
        /// This many zeros of the file.
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
        /// The repository follows: the staged changes, the marks, the settings, the attributes, the commits without parents, the pack; a list
        /// each. [`Reply::Seeded`] or [`Reply::Unseeded`].
        26 => Pack {},
        /// Write down what was seen. [`Reply::Done`].
        27 => Finish {},
        /// What has changed since the last sync. A list of `<state> <identity> <mode> <path>` records, NUL after each.
        28 => Changes {
            /// `<workRoot>/<leaseID>`.
            lease_dir: String,
            /// The directory in it.
            name: String,
        },
        /// Run a command. Pieces of its streams, then [`Reply::Exited`] or [`Reply::Unstarted`].
        29 => Run {
            /// The command.
            command: Command,
        },
        /// End the command that runs, with all of its process group.
        30 => Stop {},
        /// The regular files below a directory. A list of paths, NUL after each; [`Reply::Problem`] for what cannot be looked at.
        31 => List {
            /// The directory, absolute.
            dir: String,
            /// Directories of these names are left out.
            skipped: Vec<String>,
            /// Only what was written since the last command of this agent began.
            written: bool,
            /// Only files whose name begins and ends so; all of them where there are none.
            named: Vec<(String, String)>,
        },
        /// The contents of files, whose paths follow as a list: [`Reply::File`] and its pieces, or [`Reply::Problem`], for each in its order;
        /// then [`Reply::End`].
        32 => Fetch {
            /// The directory that they are below, as in [`Request::Tree`].
            dir: String,
            /// Whether a link in the last place of a path is followed.
            follow: bool,
            /// Files of more bytes do not come.
            limit: Option<u64>,
        },
        /// Make a directory, with those above it. [`Reply::Made`].
        33 => Make {
            /// The directory, absolute.
            dir: String,
        },
        /// What there is at a path and below it, the path itself first. A list of `<kind><path>` records, NUL after each: the kind is the letter of
        /// `find -type`, the path is seen from the first one, whose own is empty.
        34 => Tree {
            /// The path; `~` and what begins with `~/` is in the home directory, and what is relative is seen from where a login begins.
            path: String,
            /// Whether what links lead to is meant, in the place of the links.
            follow: bool,
        },
        /// Copy something to a path. Names follow as a list, by whose numbers files and links are meant; then directories, files and links as in a
        /// sync, all of them at or below `c`, and [`Request::Received`]. [`Reply::Received`] when all of it is in its place.
        35 => Put {
            /// Where, as in [`Request::Tree`].
            to: String,
            /// What it is called in a directory that is there.
            name: String,
            /// Whether a directory is meant, which is made.
            make: bool,
        },
        /// How much a directory takes on the disk. [`Reply::Sized`].
        36 => Size {
            /// The directory, absolute.
            dir: String,
        },
        /// Remove all that is in a directory, but not itself, and not through a link in its place. [`Reply::Cleared`].
        37 => Clear {
            /// The directory, absolute.
            dir: String,
        },
    }
}

messages! {
    /// What the agent answers.
    pub enum Reply {
        /// It is there.
        64 => Hello {
            /// [`crate::HELLO`].
            word: u32,
            /// Whether there is an rsync.
            rsync: bool,
        },
        /// Another client has the tree.
        65 => Busy {},
        /// A command whose client has gone still runs there.
        66 => Child {},
        /// The tree is this client's.
        67 => Owned {
            /// Whether the last owner went without a word.
            recovered: bool,
        },
        /// Nobody has the tree any more.
        68 => Released {},
        /// Nothing to do.
        69 => Same {},
        /// Send the manifest, then the paths that are something else than git's index has.
        70 => Differs {},
        /// Send what changed since the base, what was removed since, then those paths.
        71 => Patch {},
        /// Send these entries, by their place; unless it is all, a list of numbers of four bytes follows.
        72 => Stale {
            /// All of them.
            all: bool,
            /// Whether the repository is needed.
            seed: bool,
            /// The commit that it has from the last seed, hex, or empty.
            have: String,
            /// What it was told then to be the base, hex, or empty.
            have_base: String,
        },
        /// The files arrived.
        73 => Received {},
        /// The repository is as asked.
        74 => Seeded {},
        /// It is not, which harms nothing else.
        75 => Unseeded {
            /// Why.
            why: String,
        },
        /// Written down.
        76 => Done {
            /// How many entries are not as they were to be.
            unsettled: u64,
            /// Why git's index does not say what it says on the other side, which harms nothing else.
            unseeded: Option<String>,
        },
        /// It could not be done. What follows of the same sync is passed over.
        77 => Failed {
            /// The path and the reason.
            why: String,
        },
        /// The end of a list.
        78 => End {},
        /// The command has ended.
        79 => Exited {
            /// Its exit code; 128 and the number of a signal that ended it.
            code: u32,
            /// Whether it has told that its start-up files are behind it.
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
        /// A file whose pieces follow, as many bytes as are said here.
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
        /// What could not be looked at, or has changed while it was sent.
        83 => Problem {
            /// Its place in the list; behind its end where it is none of it.
            number: u32,
            /// The path and the reason.
            text: String,
            /// Whether its contents did not come.
            lost: bool,
        },
        /// The directory is there.
        84 => Made {},
        /// What a directory takes on the disk.
        85 => Sized {
            /// Whether there is such a directory.
            found: bool,
            /// How much, as far as it can be looked at; what has two names there counts once.
            bytes: u64,
        },
        /// It is empty, or not there.
        86 => Cleared {},
    }
}
