//! `guestline bench image`: making, importing and changing images, and machines of the one with systemd.
//!
//! What is made is made by this program, as a user runs it, in a home that has nothing but the packages of this one.

use super::machine::Restored;
use super::stats::{Row, Setting, median, ms};
use super::{PATIENCE, tiny};
use crate::args::{BenchArgs, GlobalArgs};
use crate::context::Context;
use crate::error::CommandError;
use crate::lease;
use crate::terminal::Progress;
use guestline::digest::Digest;
use guestline::image::Image;
use guestline::machine::Qemu;
use guestline::provision::{MachineRequest, Provisioner, WorkRoot};
use guestline::text;
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// What takes half a minute is not done more often.
const SLOW_RUNS: u32 = 3;

/// What a root is made of, and what has systemd.
const DEBIAN: &str = "debian-12";
const SYSTEMD: &str = "debian-12-systemd";

/// A line that needs systemd.
const LINE: &str = "systemctl is-active dbus.service";

struct Bench {
    global_args: Vec<String>,
    context: Context,
    folder: tempfile::TempDir,
    runs: u32,
}

pub(super) fn run(global: &GlobalArgs, args: &BenchArgs) -> Result<u8, CommandError> {
    let context = Context::new()?;
    let accel = context.acceleration(global.accel, false).accel;
    let qemu = Qemu::find(&context.dirs)?;
    let small = tiny(&context, global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let make = |name| {
        let _runtime = runtime.enter();
        let (cancel, mut progress) = (CancellationToken::new(), Progress::new());
        lease::image(&context, global, name, &cancel, &mut progress)?.map_err(CommandError::new)
    };
    let (debian, systemd) = (make(DEBIAN)?, make(SYSTEMD)?);
    make("tools")?;
    let mut global_args = vec!["--accel".to_owned(), accel.as_str().to_owned()];
    if let Some(path) = &global.agent {
        global_args.extend(["--agent".to_owned(), path.display().to_string()]);
    }
    let (version, kernel) = (qemu.version.to_string(), systemd.manifest.kernel_release.clone());
    let bench = Bench {
        global_args,
        context: Context::new()?,
        folder: tempfile::tempdir()?,
        runs: args.runs,
    };
    let mut rows = Vec::new();
    bench.make("tiny", args.runs, "at most 10", &mut rows)?;
    bench.make(DEBIAN, args.runs.min(SLOW_RUNS), "at most 60", &mut rows)?;
    let (root, other) = (bench.unpacked(&debian)?, bench.unpacked(&systemd)?);
    bench.import(&[(&root, "."), (&other, "./opt/other")], &mut rows)?;
    bench.embed(&root, &mut rows)?;
    let root = WorkRoot::create(&context.dirs, false)?;
    let provisioner = Provisioner::new(qemu, accel, root, &context.dirs);
    runtime.block_on(bench.cold(&provisioner, [small, systemd.clone()], &mut rows))?;
    runtime.block_on(async {
        let restored = Restored::of(global, systemd, LINE, args.runs).await?;
        restored.verdict("`systemctl is-active` from a template", "at most 1.3", &mut rows).await
    })?;
    let setting = Setting { accelerator: accel.as_str(), qemu: version, kernel, runs: args.runs };
    setting.print(args.message_format, json!({}), &rows)
}

impl Bench {
    /// This program in another home, seconds.
    fn timed(&self, words: &[&str], home: &Path) -> Result<f64, CommandError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(&self.global_args).args(words);
        command.env(guestline::dirs::HOME_VARIABLE, home);
        let began = Instant::now();
        succeed(&mut command)?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// A home with the packages and kernels of this one, or with all that it has but templates.
    fn home(&self, name: &str, kept: &[&str]) -> Result<PathBuf, CommandError> {
        let home = self.folder.path().join(name);
        fs::create_dir_all(home.join("cache"))?;
        for name in kept {
            let from = self.context.dirs.cache.join(name);
            if from.exists() {
                symlink(from, home.join("cache").join(name))?;
            }
        }
        Ok(home)
    }

    fn make(
        &self,
        name: &str,
        runs: u32,
        wanted: &'static str,
        rows: &mut Vec<Row>,
    ) -> Result<(), CommandError> {
        let mut times = Vec::new();
        for run in 0..runs {
            let home = self.home(&format!("make-{name}-{run}"), &["packages", "apt", "accel"])?;
            times.push(self.timed(&["image", "build", name], &home)?);
            fs::remove_dir_all(home)?;
        }
        let name = format!("{name} made and checked, packages fetched");
        rows.push(Row::new(&name, "s", median(&times), None, wanted));
        Ok(())
    }

    /// An image's root as a folder.
    fn unpacked(&self, image: &Image) -> Result<PathBuf, CommandError> {
        let root = self.folder.path().join(&image.manifest.name);
        let packed = image.root.as_ref().ok_or_else(|| CommandError::new("it has no root"))?;
        succeed(Command::new("unsquashfs").args(["-q", "-n", "-d"]).arg(&root).arg(packed))?;
        Ok(root)
    }

    /// An OCI image with a layer of each root at its place.
    fn import(&self, roots: &[(&Path, &str)], rows: &mut Vec<Row>) -> Result<(), CommandError> {
        let layout = self.folder.path().join("layout");
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let described = |kind: &str, digest: &Digest, size: u64| {
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": kind, "digest": format!("sha256:{}", digest.as_str()), "size": size })
        };
        let document = |kind: &str, content: serde_json::Value| {
            let content = content.to_string();
            let digest = Digest::of(content.as_bytes());
            fs::write(blobs.join(digest.as_str()), &content)?;
            Ok::<_, CommandError>(described(kind, &digest, content.len() as u64))
        };
        let config = document("config.v1+json", json!({ "architecture": "amd64", "os": "linux" }))?;
        let (mut layers, mut size) = (Vec::new(), 0);
        for (root, place) in roots {
            let layer = self.folder.path().join("layer");
            let mut tar = Command::new("tar");
            tar.args(["--use-compress-program", "gzip -1", "--transform"]);
            // Links lead where they led.
            tar.arg(format!("flags=r;s,^\\.,{place},")).arg("-C").arg(root).arg("-cf").arg(&layer);
            succeed(tar.arg("."))?;
            let (digest, len) = (Digest::of_file(&layer)?, fs::metadata(&layer)?.len());
            fs::rename(layer, blobs.join(digest.as_str()))?;
            layers.push(described("layer.v1.tar+gzip", &digest, len));
            size += len;
        }
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let manifest = document("manifest.v1+json", manifest)?;
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(layout.join("index.json"), index.to_string())?;
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut times = Vec::new();
        for run in 0..self.runs.min(SLOW_RUNS) {
            let home = self.home(&format!("import-{run}"), &["packages", "apt", "accel"])?;
            let from = layout.display().to_string();
            times.push(self.timed(&["image", "import", "--name", "bench", &from], &home)?);
            fs::remove_dir_all(home)?;
        }
        let name = format!("an OCI image of {:.0} MB imported and checked", size as f64 / 1e6);
        rows.push(Row::new(&name, "s", median(&times), None, "at most 20 for 100 MB"));
        Ok(())
    }

    /// A qcow2 disk of 2 GB.
    fn embed(&self, root: &Path, rows: &mut Vec<Row>) -> Result<(), CommandError> {
        let [raw, disk, out] =
            ["disk.raw", "disk.qcow2", "out.qcow2"].map(|name| self.folder.path().join(name));
        File::create_new(&raw)?.set_len(2 << 30)?;
        succeed(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(root).arg(&raw))?;
        let mut convert = Command::new("qemu-img");
        succeed(convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&disk))?;
        let home = self.home("embed", &["packages", "apt", "accel", "images", "kernels"])?;
        let mut times = Vec::new();
        for _ in 0..self.runs.min(SLOW_RUNS) {
            let (from, to) = (disk.display().to_string(), out.display().to_string());
            times.push(self.timed(&["image", "embed", &from, "-o", &to], &home)?);
            fs::remove_file(&out)?;
        }
        let name = "the agent put into a qcow2 disk of 2 GB";
        rows.push(Row::new(name, "s", median(&times), None, "at most 30"));
        Ok(())
    }

    /// From QEMU's start to the agent's first answer, of one that boots; beside the same of the other.
    async fn cold(
        &self,
        provisioner: &Provisioner,
        images: [Image; 2],
        rows: &mut Vec<Row>,
    ) -> Result<(), CommandError> {
        let mut times = [Vec::new(), Vec::new()];
        let mut ready = Vec::new();
        for _ in 0..self.runs {
            for (image, times) in images.iter().zip(&mut times) {
                let request = MachineRequest {
                    fresh_reboot: true,
                    ..MachineRequest::new(image.clone(), PATIENCE)
                };
                let lease = provisioner.lease(&request, &CancellationToken::new()).await;
                let lease =
                    lease.map_err(|failed| CommandError::new(text::chain(&failed.error)))?;
                times.push(ms(lease.answered_in));
                ready.push(ms(lease.ready_in));
                lease.end().await;
            }
        }
        let [small, systemd] = times.map(|times| median(&times));
        let name = format!("{SYSTEMD} answers, cold; beside tiny");
        rows.push(Row::new(&name, "ms", systemd, Some(small), "at most 1.2"));
        let of_systemd: Vec<f64> = ready.into_iter().skip(1).step_by(2).collect();
        rows.push(Row::new("  and is ready", "ms", median(&of_systemd), None, ""));
        Ok(())
    }
}

fn succeed(command: &mut Command) -> Result<(), CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command
        .output()
        .map_err(|error| CommandError::new(format!("cannot run `{program}`: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(CommandError::new(format!("`{program}`: {}: {said}", output.status)))
        }
    }
}
