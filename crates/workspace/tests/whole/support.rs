//! Repositories for tests, and the whole way in and out without a VM: the agent's own unpacking and
//! scan run in this process.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;

use banger_model::{ByteString, Error};
use banger_protocol::agent::{ScanSpec, UnpackSpec};
use banger_protocol::api::PrepareRequest;
use banger_workspace::capture::{Capture, Captured, Changes, Options};
use banger_workspace::export::{Export, Exported, Limits};
use rustix::fs::{Access, StatVfsMountFlags};
use tempfile::TempDir;

/// A command's environment: nobody's settings, a fixed author.
pub(crate) fn git_command(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .env_remove("GIT_DIR")
        .env_remove("GIT_INDEX_FILE")
        .env("LC_ALL", "C")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .args([
            "-c",
            "user.name=Tester",
            "-c",
            "user.email=tester@example.org",
            "-c",
            "init.defaultBranch=main",
            "-c",
            "protocol.file.allow=always",
            "-c",
            "commit.gpgSign=false",
        ]);
    command
}

/// Runs git and expects it to succeed.
pub(crate) fn git(dir: &Path, args: &[&str]) -> Vec<u8> {
    let out = try_git(dir, args);
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// Runs git.
pub(crate) fn try_git(dir: &Path, args: &[&str]) -> Output {
    git_command(dir).args(args).output().unwrap()
}

/// A path of any bytes.
pub(crate) fn at(dir: &Path, path: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(path))
}

/// Writes a file, with the directories above it.
pub(crate) fn put(dir: &Path, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) {
    let path = at(dir, path.as_ref());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// An empty directory. In memory, where there is room and programs may run there: with small files that come and go by
/// the thousand a disk's file system takes twice as long.
pub(crate) fn directory() -> TempDir {
    static MEMORY: Once = Once::new();
    MEMORY.call_once(|| {
        let shm = Path::new("/dev/shm");
        let fits = rustix::fs::statvfs(shm).is_ok_and(|is| {
            is.f_bavail * is.f_frsize >= 1 << 30 && !is.f_flag.contains(StatVfsMountFlags::NOEXEC)
        });
        if fits && std::env::var_os("TMPDIR").is_none() && rustix::fs::access(shm, Access::WRITE_OK).is_ok() {
            tempfile::env::override_temp_dir(shm).unwrap();
        }
    });
    tempfile::tempdir().unwrap()
}

/// A new repository with one commit of some files.
pub(crate) fn repository() -> TempDir {
    let dir = directory();
    git(dir.path(), &["init", "-q"]);
    for (path, content) in [("a", "one\n"), ("d/b", "two\n"), ("d/e/c", "three\n"), ("empty", "")] {
        put(dir.path(), path, content);
    }
    put(dir.path(), ".gitignore", "*.o\n/build/\n");
    commit(dir.path(), "first");
    dir
}

/// Commits everything.
pub(crate) fn commit(dir: &Path, message: &str) {
    git(dir, &["add", "-A"]);
    git(dir, &["commit", "-q", "--allow-empty", "-m", message]);
}

/// A request for the repository at `path`.
pub(crate) fn request(path: &Path) -> PrepareRequest {
    PrepareRequest {
        path: path.as_os_str().to_owned().into(),
        mode: None,
        guest_path: None,
        branch: None,
        from: None,
        include_untracked: false,
        readonly: false,
    }
}

/// A guest's copy.
pub(crate) struct Guest {
    pub(crate) dir: TempDir,
    pub(crate) captured: Captured,
    /// Where the manifest is.
    pub(crate) scratch: TempDir,
}

impl Guest {
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Files are read so soon after they are written in a test that their state says nothing yet.
pub(crate) fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(40));
}

/// Captures and unpacks.
pub(crate) fn prepare(request: &PrepareRequest) -> Result<Guest, Error> {
    let scratch = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let capture = Capture::open(request, scratch.path(), &Options::default())?;
    let files = capture.plan().files.clone();
    settle();
    let (from_host, to_guest) = std::io::pipe().unwrap();
    let spec = UnpackSpec { dest: ByteString::from(dir.path().as_os_str().to_owned()), must_be_empty: true };
    let guest = std::thread::spawn(move || banger_agent::archive::unpack(&spec, from_host));
    let captured = capture.write_tar(to_guest);
    let unpacked = guest.join().unwrap();
    let captured = captured?;
    unpacked?;
    assert_eq!(captured.plan.files, files);
    Ok(Guest { dir, captured, scratch })
}

/// Brings a guest's copy up to date. Returns what was different, and the bytes of the stream.
pub(crate) fn prepare_again(guest: &mut Guest, options: &Options<'_>) -> Result<(Changes, u64), Error> {
    let scratch = tempfile::tempdir().unwrap();
    let manifest = guest.captured.manifest.clone();
    let request = manifest.request().clone();
    let options = Options { base: Some(&manifest), ..options.clone() };
    let capture = Capture::open(&request, scratch.path(), &options)?;
    let changes = capture.changes().expect("a difference").clone();
    assert!(changes.packs.iter().all(|pack| at(guest.path(), pack.as_bytes()).exists()), "{changes:?}");
    for path in changes.removed.iter().chain(&changes.git_removed) {
        // What is not there in git's directory is said too, and a directory may have taken a place.
        let _ = std::fs::remove_file(at(guest.path(), path.as_bytes()));
        let mut dir = Path::new(path.as_os_str()).parent();
        while let Some(above) = dir.filter(|d| !d.starts_with(".git") && !d.as_os_str().is_empty()) {
            let _ = std::fs::remove_dir(guest.path().join(above));
            dir = above.parent();
        }
    }
    let mut tar = Vec::new();
    let captured = capture.write_tar(&mut tar)?;
    let dest = ByteString::from(guest.path().as_os_str().to_owned());
    banger_agent::archive::unpack(&UnpackSpec { dest, must_be_empty: false }, &tar[..])?;
    guest.captured = captured;
    guest.scratch = scratch;
    Ok((changes, tar.len() as u64))
}

/// Every file of a working tree with its kind, mode and content.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let out = Command::new("sh")
        .current_dir(dir)
        .args(["-c", "find . -name .git -prune -o ! -type d -printf '%p %y %m %s %l\\n' | sort; find . -name .git -prune -o -type f -print0 | sort -z | xargs -0 sha1sum"])
        .output()
        .unwrap();
    assert!(out.status.success());
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

/// Scans a guest's tree and receives the records. The scratch directory holds the patch.
pub(crate) fn export(source: &Path, base: &str, guest: &Path) -> Result<(TempDir, Exported), Error> {
    let scratch = tempfile::tempdir().unwrap();
    let export = Export::new(source, base, scratch.path())?;
    let spec = ScanSpec {
        root: ByteString::from(guest.as_os_str().to_owned()),
        object_format: export.object_format().to_owned(),
        max_bytes: 1 << 30,
        ticks: true,
    };
    let mut records = Vec::new();
    let summary = banger_agent::scan::scan(guest, &spec, export.base_listing()?, &mut records)?;
    assert!(summary.bytes <= records.len() as u64);
    let exported = export.receive(&records[..], &Limits::default())?;
    Ok((scratch, exported))
}

/// The tree that the patch makes of the base, by `git apply --binary --index` in a fresh clone.
pub(crate) fn applied(source: &Path, base: &str, patch: &Path) -> String {
    let clone = tempfile::tempdir().unwrap();
    git(source, &["clone", "-q", "--shared", "--no-checkout", ".", clone.path().to_str().unwrap()]);
    git(clone.path(), &["-c", "core.autocrlf=false", "checkout", "-q", "--detach", base]);
    if std::fs::metadata(patch).unwrap().len() > 0 {
        git(clone.path(), &["apply", "--binary", "--index", "--whitespace=nowarn", patch.to_str().unwrap()]);
    }
    tree_id(&git(clone.path(), &["write-tree"]))
}

/// The same tree without a clone: the patch goes to an index in scratch.
pub(crate) fn applied_to_index(source: &Path, base: &str, patch: &Path) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let out = git_command(source)
            .env("GIT_INDEX_FILE", scratch.path().join("index"))
            .env("GIT_OBJECT_DIRECTORY", scratch.path())
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", source.join(".git/objects"))
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    run(&["read-tree", base]);
    if std::fs::metadata(patch).unwrap().len() > 0 {
        run(&["apply", "--binary", "--cached", "--whitespace=nowarn", patch.to_str().unwrap()]);
    }
    tree_id(&run(&["write-tree"]))
}

/// What `git add -A` and `git write-tree` make of a guest's files, its index being left alone.
pub(crate) fn guest_tree(guest: &Path) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let index = scratch.path().join("index");
    let real = guest.join(".git/index");
    if real.exists() {
        // With its time: git compares the files' with it.
        assert!(Command::new("cp").arg("-p").args([&real, &index]).status().unwrap().success());
    }
    for args in [&["add", "-A"][..], &["write-tree"]] {
        let mut git = git_command(guest);
        // A copy's settings do not tell a file from one of the same size and second.
        git.args(["-c", "core.checkStat=default", "-c", "core.trustctime=true"]);
        let out = git.env("GIT_INDEX_FILE", &index).args(args).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        if args[0] == "write-tree" {
            return tree_id(&out.stdout);
        }
    }
    unreachable!()
}

/// The tree of a directory's files. Those of `known` count although a rule ignores them.
pub(crate) fn tree_of_files(dir: &Path, known: &str, out: &Exported) -> String {
    let index = Scratch::new(dir, out);
    index.git(&["read-tree", known], b"");
    index.git(&["add", "-A"], b"");
    tree_id(&index.git(&["write-tree"], b""))
}

/// git with an index of its own that knows the objects of an export.
struct Scratch<'a> {
    dir: &'a Path,
    scratch: TempDir,
    objects: PathBuf,
}

impl<'a> Scratch<'a> {
    fn new(dir: &'a Path, out: &Exported) -> Self {
        let objects = out.patch.with_file_name("export.git").join("objects");
        Self { dir, scratch: tempfile::tempdir().unwrap(), objects }
    }

    fn git(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let file = self.scratch.path().join("input");
        std::fs::write(&file, input).unwrap();
        let out = git_command(self.dir)
            .env("GIT_INDEX_FILE", self.scratch.path().join("index"))
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", &self.objects)
            .args(args)
            .stdin(std::fs::File::open(file).unwrap())
            .output()
            .unwrap();
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    }
}

pub(crate) fn tree_id(out: &[u8]) -> String {
    String::from_utf8_lossy(out).trim().to_owned()
}

/// `git status` as scripts read it, untracked files one by one.
pub(crate) fn status(dir: &Path) -> String {
    let out =
        git(dir, &["-c", "core.fsmonitor=false", "status", "--porcelain=v2", "-z", "--untracked-files=all"]);
    out.split(|b| *b == 0).map(|line| format!("{}\n", line.escape_ascii())).collect()
}

/// Every file below a directory, with its content and state: equal when nothing was written. git
/// renews the time of objects and shared indexes that it reads.
pub(crate) fn fingerprint(dir: &Path) -> Vec<String> {
    let out = Command::new("sh")
        .current_dir(dir)
        .args(["-c", "find . -printf '%p %y %m %s %T@ %l\\n' | sed -E 's,^(./.git/(objects/../|sharedindex).* [0-9]+) [0-9.]+ ,\\1 ,' | sort; find . -type f -print0 | sort -z | xargs -0 sha1sum"])
        .output()
        .unwrap();
    assert!(out.status.success());
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

/// Output as text.
pub(crate) fn text(out: &[u8]) -> String {
    String::from_utf8(out.to_vec()).unwrap()
}
