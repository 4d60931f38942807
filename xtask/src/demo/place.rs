//! The files of a recording: the data, and the drawing beside it. README.md shows the ones in docs/demo.
//!
//! The same recording gives the same bytes. It must never draw anything but a recording, nor touch another
//! file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::recording::Recording;
use super::screen;
use crate::workspace;

/// The directory of the recordings shown in documents, relative to the root.
const HOME: &str = "docs/demo";

/// The files of one recording.
#[derive(Debug)]
pub(super) struct Place {
    drawing: PathBuf,
}

impl Place {
    /// The place whose drawing is `drawing`.
    pub(super) fn new(drawing: &Path) -> Result<Self> {
        ensure!(
            drawing.extension().is_some_and(|ending| ending == "svg"),
            "--record {} has to end in .svg",
            drawing.display()
        );
        let dir = drawing.parent().filter(|dir| !dir.as_os_str().is_empty());
        ensure!(
            dir.is_none_or(Path::is_dir),
            "--record {}: there is no such directory",
            drawing.display()
        );
        Ok(Self {
            drawing: drawing.to_owned(),
        })
    }

    pub(super) fn drawing(&self) -> &Path {
        &self.drawing
    }

    fn document(&self) -> PathBuf {
        self.drawing.with_extension("json")
    }

    /// Writes a new recording, of a demo with the steps `shown`.
    pub(super) fn write(&self, recording: &Recording, shown: &[&str]) -> Result<()> {
        recording.judge_new(shown)?;
        let text = serde_json::to_string_pretty(recording)? + "\n";
        for (path, text) in [
            (self.document(), text),
            (self.drawing.clone(), screen::svg(recording)),
        ] {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn read(&self) -> Result<Recording> {
        let path = self.document();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let read: Recording =
            serde_json::from_str(&text).with_context(|| format!("{} is no recording", path.display()))?;
        read.judge()
            .with_context(|| format!("{} is no recording", path.display()))?;
        Ok(read)
    }
}

/// The one shown in documents.
fn committed() -> Place {
    let drawing = workspace::root().join(HOME).join("demo.svg");
    Place { drawing }
}

/// The drawing in docs/demo, if it does not match the recording; with `write` it is corrected.
pub(crate) fn settle(write: bool) -> Result<Option<String>> {
    let place = committed();
    let wanted = screen::svg(&place.read()?);
    if fs::read_to_string(place.drawing()).is_ok_and(|kept| kept == wanted) {
        return Ok(None);
    }
    if write {
        fs::write(place.drawing(), wanted)?;
    }
    Ok(Some(format!("{HOME}/demo.svg")))
}

/// The block of README.md.
pub(crate) fn block() -> Result<String> {
    let recording = committed().read()?;
    let foot = recording.foot();
    Ok(format!(
        "![The main job in a terminal, as it was recorded: the text below, line by line]({HOME}/demo.svg)\n\n\
         The same as text ({foot} The document behind both: [demo.json]({HOME}/demo.json)):\n\n```\n{}\n```",
        recording.transcript()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::recording::tests::{SHOWN, recording};
    use super::*;

    #[test]
    fn what_is_committed_is_drawn_from_its_document_and_a_drawing_by_hand_is_found() {
        assert_eq!(settle(false).unwrap(), None);
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(&dir.path().join("demo.svg")).unwrap();
        assert!(place.write(&recording(), &SHOWN[1..]).is_err() && !place.document().exists());
        place.write(&recording(), &SHOWN).unwrap();
        let kept = fs::read_to_string(place.drawing()).unwrap();
        assert_eq!(screen::svg(&place.read().unwrap()), kept);
        let other = fs::read_to_string(place.document())
            .unwrap()
            .replace("at once", "at last");
        fs::write(place.document(), other).unwrap();
        assert_ne!(screen::svg(&place.read().unwrap()), kept);
    }

    #[test]
    fn a_recording_is_written_as_svg_into_a_directory_that_is_there() {
        for (path, because) in [
            ("demo.gif", "end in .svg"),
            ("nowhere/demo.svg", "no such directory"),
        ] {
            let error = Place::new(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains(because), "{error}");
        }
        Place::new(Path::new("demo.svg")).unwrap();
    }
}
