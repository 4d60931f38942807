//! A stage of a running command: reported when it begins and when it ends, whatever the outcome.

use std::fmt;
use std::time::{Duration, Instant};

/// Receives the stages, from any thread. `a/b` is a part of `a`.
pub trait Stages: Sync {
    /// A stage has begun.
    fn began(&self, stage: &'static str);

    /// A stage is over; `ok` says whether it succeeded.
    fn ended(&self, stage: &'static str, took: Duration, ok: bool);
}

/// A stage in progress. Dropping it before it was ended counts as a failure.
pub struct Stage<'a> {
    heard: &'a dyn Stages,
    name: &'static str,
    began: Instant,
    ok: bool,
}

impl fmt::Debug for Stage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<'a> Stage<'a> {
    /// Begins a stage and reports it.
    pub fn begin(heard: &'a dyn Stages, name: &'static str) -> Self {
        heard.began(name);
        Self {
            heard,
            name,
            began: Instant::now(),
            ok: false,
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Ends the stage; `ok` says whether it succeeded.
    pub fn end(mut self, ok: bool) {
        self.ok = ok;
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.heard.ended(self.name, self.began.elapsed(), self.ok);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Stages for Heard {
        fn began(&self, stage: &'static str) {
            self.0.lock().unwrap().push(format!("{stage} began"));
        }

        fn ended(&self, stage: &'static str, _: Duration, ok: bool) {
            self.0.lock().unwrap().push(format!("{stage} ended {ok}"));
        }
    }

    #[test]
    fn a_stage_that_nobody_ends_has_failed() {
        let heard = Heard::default();
        Stage::begin(&heard, "a").end(true);
        let failing = || -> Result<(), ()> {
            let stage = Stage::begin(&heard, "b");
            Err(())?;
            stage.end(true);
            Ok(())
        };
        failing().unwrap_err();
        assert_eq!(
            heard.0.into_inner().unwrap(),
            ["a began", "a ended true", "b began", "b ended false"]
        );
    }
}
