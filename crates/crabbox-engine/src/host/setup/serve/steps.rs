//! The individual steps of `setup --serve`: account, keys, sudoers rule.
//!
//! Everything is recorded before it is made. It must never write where the plan did not say so, or overwrite
//! what was changed since.

use std::path::Path;

use crabbox_host::command::Cmd;
use crabbox_host::{digest, files};
use crabbox_machine::context::Engine;
use crabbox_machine::failpoint::{self, Phase, Who};

use super::super::record::{Made, Record};
use super::authorized::{self, Added};
use super::{
    CHECK_LIMIT, Ground, ServeSetupError, ServeStep, account, is_line, is_made, open_dirs, read_keys,
    read_text, replace, sessions,
};

/// The state that a step works with.
struct Applying<'a> {
    engine: &'a Engine,
    ground: &'a Ground,
    record: &'a mut Record,
}

/// Performs one step.
pub(in super::super) fn apply(
    engine: &Engine,
    ground: &Ground,
    record: &mut Record,
    step: &ServeStep,
) -> Result<(), ServeSetupError> {
    let mut applying = Applying {
        engine,
        ground,
        record,
    };
    match step {
        ServeStep::Account { home } => applying.account(home),
        ServeStep::Expel { path, line, .. } => applying.expel(path, line),
        ServeStep::Rewrite {
            path,
            owner,
            old,
            line,
        } => applying.rewrite(path, owner, (old, line)),
        ServeStep::End { owner } => applying.end(owner),
        ServeStep::Forget { owner, line } => {
            Ok(applying.record.forget_where(&|made| is_line(made, owner, line))?)
        }
        ServeStep::Sudoers { path, text } => applying.sudoers(path, text),
        ServeStep::NoSudoers { path } => applying.no_sudoers(path),
        ServeStep::Admit { path, owner, line } => applying.admit(path, owner, line),
    }
}

impl Applying<'_> {
    fn hit(&self, step: &str, phase: Phase) {
        failpoint::hit(&self.engine.failpoint, Who::Cli, step, phase);
    }

    fn account(&mut self, home: &Path) -> Result<(), ServeSetupError> {
        self.record.add(
            Made::Account {
                home: home.to_owned(),
            },
            Path::new("/"),
        )?;
        self.hit("serve-account", Phase::Begun);
        account::make(self.ground)?;
        self.hit("serve-account", Phase::Done);
        Ok(())
    }

    fn expel(&mut self, path: &Path, line: &str) -> Result<(), ServeSetupError> {
        let mut lines = read_keys(path)?;
        let ended = self.record.has_ended(path, line);
        lines.take_out(line, Added { ended });
        replace(path, &lines.text(), 0o644, &|_| Ok(()))?;
        self.hit("serve-expel", Phase::Made);
        Ok(())
    }

    /// Replaces an owner's line `old` by `line`.
    fn rewrite(
        &mut self,
        path: &Path,
        owner: &str,
        (old, line): (&str, &str),
    ) -> Result<(), ServeSetupError> {
        let mut lines = read_keys(path)?;
        if !lines.has(old) {
            return Err(ServeSetupError::Moved);
        }
        let ended = self.record.has_ended(path, old);
        self.record
            .add(key(path, owner, line, ended), path.parent().unwrap_or(path))?;
        lines.replace(old, line);
        replace(path, &lines.text(), 0o644, &|_| Ok(()))?;
        self.hit("serve-rewrite", Phase::Made);
        Ok(self.record.forget_where(&|made| is_line(made, owner, old))?)
    }

    fn end(&mut self, owner: &str) -> Result<(), ServeSetupError> {
        let is_gone = |served: &str| served == owner;
        sessions::end_servers(&self.ground.processes, &self.engine.exe, &is_gone)?;
        // An open connection keeps working with a removed key, and we cannot tell which key opened it, so end
        // them all.
        if let Some(account) = account::find(self.ground)?.filter(|account| is_made(account, self.record)) {
            account::end_sessions(self.ground, &account)?;
        }
        self.hit("serve-end", Phase::Done);
        Ok(())
    }

    /// Refuses to touch a rule that setup did not write: it may have changed since this was planned.
    fn check_sudoers(&self, path: &Path) -> Result<(), ServeSetupError> {
        let wrote = |there: &str| self.record.wrote(path, &digest::sha256(there.as_bytes()));
        if read_text(path)?.is_some_and(|there| !wrote(&there)) {
            return Err(ServeSetupError::Changed {
                path: path.to_owned(),
            });
        }
        Ok(())
    }

    fn no_sudoers(&self, path: &Path) -> Result<(), ServeSetupError> {
        self.check_sudoers(path)?;
        files::remove_tree(path)?;
        self.hit("serve-nosudoers", Phase::Done);
        Ok(())
    }

    fn sudoers(&mut self, path: &Path, text: &str) -> Result<(), ServeSetupError> {
        self.check_sudoers(path)?;
        self.record.sudoers(path, &digest::sha256(text.as_bytes()))?;
        self.hit("serve-sudoers", Phase::Begun);
        let check = |new: &Path| {
            let checked = Cmd::new(self.ground.tool("visudo")?)
                .args(["-c", "-q", "-f"])
                .arg(new)
                .limit(CHECK_LIMIT)
                .run();
            self.hit("serve-sudoers", Phase::Made);
            checked.map(drop).map_err(|source| ServeSetupError::Refused {
                path: path.to_owned(),
                source,
            })
        };
        replace(path, text, 0o440, &check)?;
        self.hit("serve-sudoers", Phase::Done);
        Ok(())
    }

    fn admit(&mut self, path: &Path, owner: &str, line: &str) -> Result<(), ServeSetupError> {
        let mut lines = read_keys(path)?;
        let its_key = authorized::key_of(line).unwrap_or_default();
        if lines.with_key(its_key).is_some() {
            return Err(ServeSetupError::Moved);
        }
        let dir = path.parent().unwrap_or(path);
        if std::fs::symlink_metadata(path).is_err() {
            let file = Made::KeyFile {
                path: path.to_owned(),
            };
            self.record.add(file, dir)?;
        }
        let added = lines.add(line);
        self.record.add(key(path, owner, line, added.ended), dir)?;
        self.hit("serve-keys", Phase::Begun);
        open_dirs(dir)?;
        replace(path, &lines.text(), 0o644, &|_| {
            self.hit("serve-keys", Phase::Made);
            Ok(())
        })?;
        self.hit("serve-keys", Phase::Done);
        Ok(())
    }
}

fn key(path: &Path, owner: &str, line: &str, ended: bool) -> Made {
    Made::Key {
        path: path.to_owned(),
        owner: owner.to_owned(),
        line: line.to_owned(),
        ended,
    }
}
