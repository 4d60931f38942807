//! `bench disk`: the time to make a private writable disk, for a small and a large image, on ext4 and on XFS,
//! compared with a plain copy.
//!
//! Both file systems are made in sparse files and mounted by loop devices, so that they differ in nothing
//! else. Timings never decide a test; they are printed for a person and kept in `target/bench/disk.json`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use crabbox_host::command::Cmd;
use crabbox_host::files;
use crabbox_image::disk;
use serde_json::{Value, json};

use super::median;
use crate::workspace;

/// Runs of each measurement, of which the median counts. One takes some milliseconds, so a few runs would
/// show the noise of the machine rather than the size of the image.
const RUNS: usize = 201;

/// Warm-up runs: they bring programs and directories into the page cache.
const WARM_UP: usize = 10;

/// The two sizes, in MiB.
const SIZES: [u64; 2] = [1024, 16 * 1024];

/// The amount to copy for comparison, in MiB: an eighth of the larger image, because all of it would keep
/// this machine's disk busy for minutes. The time for the whole image is extrapolated from the fastest of
/// [`COPIES`], so that the printed share is too high rather than too low.
const COPIED: u64 = 2048;

/// How often to copy it.
const COPIES: usize = 3;

/// Size of each file system, in MiB; sparse.
const ROOM: u64 = 6 * 1024;

/// A file system in a file, mounted until it is dropped.
struct Mounted {
    file: PathBuf,
    dir: PathBuf,
}

impl Mounted {
    fn new(kind: &str, base: &Path) -> Result<Self> {
        let mounted = Self {
            file: base.join(format!("{kind}.img")),
            dir: base.join(kind),
        };
        files::remove_tree(&mounted.file)?;
        std::fs::create_dir_all(&mounted.dir)?;
        File::create_new(&mounted.file)?.set_len(ROOM << 20)?;
        Cmd::inheriting(format!("mkfs.{kind}"))
            .arg("-q")
            .arg(&mounted.file)
            .run()?;
        Cmd::inheriting("mount")
            .args(["-o", "loop"])
            .args([&mounted.file, &mounted.dir])
            .run()
            .context("cannot mount; this needs root and loop devices")?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A failure shows in the next run, which cannot remove the file.
        Cmd::inheriting("umount").arg(&self.dir).run().ok();
        files::remove_tree(&self.file).ok();
    }
}

/// Measures and reports. Mounts in its own namespace: copies in another one would keep the file systems alive
/// after unmounting.
pub(crate) fn main(inside: bool) -> Result<ExitCode> {
    if !inside {
        let again = Cmd::inheriting("unshare")
            .arg("--mount")
            .arg(std::env::current_exe()?)
            .args(["bench", "disk", "--inside"]);
        let mut command = again.to_std();
        let status = again.spawn(&mut command)?.wait()?;
        return Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let base = workspace::target_dir().join("bench/disk");
    std::fs::create_dir_all(&base)?;
    let mut rows = Vec::new();
    for kind in ["ext4", "xfs"] {
        let mounted = Mounted::new(kind, &base)?;
        rows.push(measure(kind, &mounted.dir)?);
    }
    let document = json!({ "runs": RUNS, "copiedMib": COPIED, "unit": "milliseconds", "fileSystems": rows });
    let out = workspace::target_dir().join("bench/disk.json");
    std::fs::write(&out, serde_json::to_vec_pretty(&document)?)?;
    println!(
        "time to a private writable disk, median of {RUNS}, in ms; a layer over a shared base; a private copy of an empty image"
    );
    println!(
        "          layer 1 GiB  layer 16 GiB  ratio  copied 1 GiB  copied 16 GiB  plain copy 16 GiB  layer/plain"
    );
    for row in &rows {
        let value = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        println!(
            "{:8}  {:11.1}  {:12.1}  {:5.2}  {:12.1}  {:13.1}  {:17.0}  {:10.3}%",
            row["fileSystem"].as_str().unwrap_or("?"),
            value("layer1024"),
            value("layer16384"),
            value("layer16384") / value("layer1024"),
            value("private1024"),
            value("private16384"),
            value("plainCopy"),
            100.0 * value("layer16384") / value("plainCopy"),
        );
    }
    println!("{}", out.display());
    Ok(ExitCode::SUCCESS)
}

/// Takes all measurements on one file system.
fn measure(kind: &str, dir: &Path) -> Result<Value> {
    let mut row = json!({ "fileSystem": kind });
    let (base, disk, plain) = (dir.join("base"), dir.join("disk"), dir.join("plain"));
    let mut layers = SIZES.map(|_| Vec::new());
    let mut privates = SIZES.map(|_| Vec::new());
    let images: Vec<PathBuf> = SIZES
        .iter()
        .map(|size| dir.join(format!("image-{size}")))
        .collect();
    for (size, image) in SIZES.iter().zip(&images) {
        File::create_new(image)?.set_len(size << 20)?;
        Cmd::inheriting("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .arg(image)
            .run()?;
    }
    // Alternate, so that a busy moment of this machine affects both sizes.
    for run in 0..WARM_UP + RUNS {
        for (which, (size, image)) in SIZES.iter().zip(&images).enumerate() {
            let began = Instant::now();
            files::place_read_only(image, &base)?;
            disk::make_layer(&disk, *size)?;
            let layer = milliseconds(began);
            std::fs::remove_file(&base)?;
            std::fs::remove_file(&disk)?;
            let began = Instant::now();
            disk::clone_rootfs(image, &disk, 0)?;
            let private = milliseconds(began);
            std::fs::remove_file(&disk)?;
            if run >= WARM_UP {
                layers[which].push(layer);
                privates[which].push(private);
            }
        }
    }
    for (which, size) in SIZES.iter().enumerate() {
        row[format!("layer{size}")] = median(layers[which].clone()).into();
        row[format!("private{size}")] = median(privates[which].clone()).into();
    }
    let filled = dir.join("filled");
    Cmd::inheriting("dd")
        .args([
            "if=/dev/urandom",
            "bs=1M",
            "status=none",
            &format!("count={COPIED}"),
        ])
        .arg(format!("of={}", filled.display()))
        .run()?;
    let mut fastest = f64::INFINITY;
    for _ in 0..COPIES {
        let began = Instant::now();
        Cmd::inheriting("cp")
            .args(["--sparse=never", "--reflink=never"])
            .args([&filled, &plain])
            .run()?;
        fastest = fastest.min(milliseconds(began));
        std::fs::remove_file(&plain)?;
    }
    let parts = u32::try_from(SIZES[1] / COPIED)?;
    row["plainCopy"] = (fastest * f64::from(parts)).into();
    Ok(row)
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}
