//! What a capture costs beside `tar` of the same files, and a second one beside the first. Measures,
//! so it only runs when asked: `cargo test --release -p banger-workspace --test whole -- --ignored speed`.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{commit, git, put, request};
use banger_workspace::Cancel;
use banger_workspace::capture::{Capture, Captured, Options};

/// The most that this process had in memory since it was last asked, KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Counts, and is as slow as a pipe.
struct Pipe(std::io::PipeWriter);

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn drained<T>(act: impl FnOnce(std::io::PipeWriter) -> T) -> (T, u64, Duration) {
    let began = Instant::now();
    let (mut from, to) = std::io::pipe().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut buf, mut all) = (vec![0; 64 << 10], 0);
        while let n @ 1.. = from.read(&mut buf).unwrap() {
            all += n as u64;
        }
        all
    });
    let done = act(to);
    (done, reader.join().unwrap(), began.elapsed())
}

fn captured(repo: &Path, scratch: &Path, base: Option<&Captured>) -> (Captured, u64, Duration) {
    drained(|to| {
        let options = Options { base: base.map(|b| &b.manifest), ..Options::default() };
        let capture = Capture::open(&request(repo), scratch, &options).unwrap();
        capture.write_tar(std::io::BufWriter::with_capacity(64 << 10, Pipe(to))).unwrap()
    })
}

fn measure(files: usize, size: usize) {
    let repo = tempfile::tempdir().unwrap();
    git(repo.path(), &["init", "-q"]);
    for n in 0..files {
        let text = format!("file {n} of {files}\n").repeat(size / 20);
        put(repo.path(), format!("dir{}/sub{}/file{n}.txt", n % 97, n % 13), text);
    }
    commit(repo.path(), "all");
    git(repo.path(), &["gc", "-q"]);
    std::thread::sleep(Duration::from_millis(50));
    let tar = || {
        let run = |to| {
            let mut list = Command::new("git")
                .current_dir(repo.path())
                .args(["ls-files", "-z"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let tar = Command::new("tar")
                .current_dir(repo.path())
                .args(["c", "--null", "-T", "-"])
                .stdin(list.stdout.take().unwrap())
                .stdout(to)
                .status();
            assert!(tar.unwrap().success() && list.wait().unwrap().success());
        };
        drained(run)
    };
    tar();
    let ((), tar_bytes, tar_time) = tar();
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let dir = scratch.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        dir
    };
    peak();
    let before = peak();
    let (first, first_bytes, first_time) = captured(repo.path(), &place("first"), None);
    let first_peak = peak() - before;
    for n in 0..10 {
        put(repo.path(), format!("dir{}/sub{}/file{n}.txt", n % 97, n % 13), "touched\n");
    }
    let before = peak();
    let (second, second_bytes, second_time) = captured(repo.path(), &place("second"), Some(&first));
    let second_peak = peak().saturating_sub(before);
    let began = Instant::now();
    assert_eq!(second.manifest.drift(&Cancel::never()).unwrap().changed, 0);
    eprintln!(
        "{files} files: tar {tar_time:?} ({tar_bytes} B), first {first_time:?} ({first_bytes} B, +{first_peak} KiB), second {second_time:?} ({second_bytes} B, +{second_peak} KiB), drift {:?}",
        began.elapsed()
    );
    // Starting git some twenty times is not what is compared; a guest's share is not in it.
    assert!(second_time * 10 <= first_time.max(Duration::from_secs(5)), "{second_time:?} {first_time:?}");
    assert!(first_peak <= 32 << 10 && second_peak <= 32 << 10);
}

#[test]
#[ignore = "measures"]
fn speed() {
    measure(5_000, 10_000);
    measure(100_000, 200);
}
