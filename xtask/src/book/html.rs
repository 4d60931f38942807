//! Checks the links of HTML files: to other files and to anchors in them.
//!
//! It reads attributes as mdBook writes them, in double quotes. It never leaves the given directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::docs::links;

/// Attributes that link from a page.
const LINKS: [&str; 2] = [" href=\"", " src=\""];
/// Attributes that define an anchor.
const PLACES: [&str; 2] = [" id=\"", " name=\""];
/// Served in place of missing pages, so its links are relative to no directory.
const ELSEWHERE: &str = "404.html";

/// The number of links between files below `dir`, and the broken ones.
pub(super) fn follow(dir: &Path) -> Result<(usize, Vec<String>)> {
    let mut files = BTreeSet::new();
    list(dir, "", &mut files)?;
    let mut pages = BTreeMap::new();
    for name in files.iter().filter(|name| is_page(name)) {
        pages.insert(name.as_str(), fs::read_to_string(dir.join(name))?);
    }
    ensure!(!pages.is_empty(), "{} has no page", dir.display());
    let places: BTreeMap<&str, BTreeSet<&str>> = pages
        .iter()
        .map(|(name, text)| (*name, PLACES.iter().flat_map(|mark| values(text, mark)).collect()))
        .collect();
    let (mut count, mut broken) = (0, Vec::new());
    for (name, text) in &pages {
        for link in LINKS.iter().flat_map(|mark| values(text, mark)) {
            if link.contains(':') {
                continue;
            }
            count += 1;
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                Some((*name).to_owned())
            } else {
                links::from_root(name, file)
            };
            let there = target.is_some_and(|target| {
                files.contains(&target)
                    && (place.is_empty()
                        || places.get(target.as_str()).is_some_and(|all| all.contains(place)))
            });
            if !there {
                broken.push(format!("{name}: nothing at {link}"));
            }
        }
    }
    broken.sort();
    broken.dedup();
    Ok((count, broken))
}

fn is_page(name: &str) -> bool {
    name != ELSEWHERE && Path::new(name).extension().is_some_and(|ending| ending == "html")
}

/// Every file below `dir`, by relative path.
fn list(dir: &Path, above: &str, files: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let name = format!("{above}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.insert(name);
        }
    }
    Ok(())
}

/// The values of the attributes that start with `mark`.
fn values<'a>(text: &'a str, mark: &str) -> impl Iterator<Item = &'a str> {
    text.split(mark).skip(1).filter_map(|rest| rest.split('"').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_files_and_to_places_in_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        for (name, text) in [
            (
                "index.html",
                "<a href=\"in/a.html\"> <a href=\"in/a.html#here\"> <a href=\"in/a.html#there\"> <a href=\"#top\"> <h1 id=\"top\"> \
                 <a href=\"scheme://x\"> <img src=\"gone.svg\"> <a href=\"../out\">",
            ),
            (
                "in/a.html",
                "<h2 id=\"here\"> <a href=\"../index.html#top\"> <a href=\"b.html\">",
            ),
            ("404.html", "<a href=\"/anywhere\">"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let (count, broken) = follow(dir.path()).unwrap();
        assert_eq!(count, 8);
        assert_eq!(
            broken,
            [
                "in/a.html: nothing at b.html",
                "index.html: nothing at ../out",
                "index.html: nothing at gone.svg",
                "index.html: nothing at in/a.html#there"
            ]
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(follow(empty.path()).is_err(), "no page is no book");
    }
}
