//! Directories, archives and squashfs files become images; what is wrong is refused and leaves nothing.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test's helpers fail the test")]

use std::cell::Cell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_image::{BuiltImage, Context, ImageError, ImageFiles};
use banger_model::{Error, ErrorCode};
use tempfile::TempDir;

/// A store of its own, or a line that says why the test is skipped.
struct Lab {
    dir: TempDir,
    files: ImageFiles,
}

fn lab() -> Option<Lab> {
    for tool in ["sqfstar", "unsquashfs"] {
        if Command::new(tool).arg("-version").output().is_err() {
            eprintln!("skipped: {tool} is not installed");
            return None;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let files = ImageFiles::new(dir.path().join("images"), dir.path().join("tmp"));
    Some(Lab { dir, files })
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn import(&self, path: &Path) -> Result<BuiltImage, ImageError> {
        self.import_unless(path, &|| false)
    }

    fn import_unless(&self, path: &Path, cancelled: &dyn Fn() -> bool) -> Result<BuiltImage, ImageError> {
        let ctx = Context { progress: &|_| {}, cancelled, cache_dir: self.path("cache") };
        self.files.import(path, &ctx)
    }

    /// The error of an import, after which nothing may be left.
    fn refused(&self, path: &Path) -> Error {
        let error = Error::from(self.import(path).unwrap_err());
        self.assert_empty();
        error
    }

    fn assert_empty(&self) {
        for dir in ["images", "tmp"] {
            let left: Vec<_> = fs::read_dir(self.path(dir)).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    /// `unsquashfs -lls` of an image: mode, owner, size, path.
    fn list(&self, image: &BuiltImage) -> String {
        let path = self.files.path(&image.digest).unwrap();
        let output = Command::new("unsquashfs").arg("-lln").arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn cat(&self, image: &BuiltImage, name: &str) -> Vec<u8> {
        let path = self.files.path(&image.digest).unwrap();
        Command::new("unsquashfs").arg("-cat").arg(path).arg(name).output().unwrap().stdout
    }
}

/// A small root file system with one of everything.
fn plant(root: &Path) {
    let long = "d".repeat(120);
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    fs::write(root.join("bin/busybox"), vec![7; 300_000]).unwrap();
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("bin/busybox"), root.join("bin/sh")).unwrap();
    symlink("../lib//./x", root.join("bin/odd")).unwrap();
    symlink(format!("/{long}/{long}"), root.join("bin/far")).unwrap();
    fs::write(root.join(&long).join(&long).join("file"), "deep").unwrap();
    fs::write(root.join("name with\nnewline"), "n").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    drop(UnixListener::bind(root.join("socket")).unwrap());
}

fn tar_of(dir: &Path) -> Vec<u8> {
    let output = Command::new("tar").args(["-C", dir.to_str().unwrap(), "-c", "."]).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_directory_arrives_as_it_is_but_belongs_to_root() {
    let Some(lab) = lab() else { return };
    let root = lab.path("root");
    plant(&root);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();

    let image = lab.import(&root).unwrap();

    let list = lab.list(&image);
    let line = |end: &str| {
        let end = format!("squashfs-root{end}");
        list.lines().find(|l| l.ends_with(&end)).unwrap_or_else(|| panic!("no {end} in {list}")).to_owned()
    };
    assert!(line("").starts_with("drwxr-xr-x 0/0"), "{}", line(""));
    assert!(line("/bin/busybox").starts_with("-rwsr-xr-x 0/0"), "{}", line("/bin/busybox"));
    assert!(line("/bin/odd -> ../lib//./x").starts_with('l'));
    let long = "d".repeat(120);
    line(&format!("/bin/far -> /{long}/{long}"));
    line(&format!("/{long}/{long}/file"));
    line("/empty");
    line("/bin/sh");
    assert!(line("/pipe").starts_with('p'));
    assert!(list.contains("name with\nnewline"));
    assert!(!list.contains("socket"));
    assert_eq!(lab.cat(&image, "bin/sh"), vec![7; 300_000]);
    let file = lab.files.path(&image.digest).unwrap();
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.len()), (0o400, image.size.0));
    // The hard link cost nothing, and the bytes compress well.
    assert!(meta.len() < 100_000);
    assert_eq!(fs::metadata(lab.path("images")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(fs::read_dir(lab.path("tmp")).unwrap().next().is_none());
    lab.files.verify(&image.digest).unwrap();
}

#[test]
fn the_same_tree_has_the_same_digest_and_another_tree_another() {
    let Some(lab) = lab() else { return };
    let root = lab.path("root");
    plant(&root);
    let first = lab.import(&root).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));

    assert_eq!(lab.import(&root).unwrap().digest, first.digest);
    fs::write(root.join("bin/new"), "x").unwrap();
    let second = lab.import(&root).unwrap();
    assert_ne!(second.digest, first.digest);

    assert_eq!(
        lab.files.list_unreferenced(std::slice::from_ref(&first.digest)).unwrap(),
        std::slice::from_ref(&second.digest)
    );
    lab.files.remove(&first.digest).unwrap();
    lab.files.remove(&first.digest).unwrap();
    let gone = Error::from(lab.files.path(&first.digest).unwrap_err());
    assert_eq!(gone.code, ErrorCode::ImageMissing);
    assert_eq!(lab.files.list_unreferenced(&[]).unwrap(), [second.digest]);
}

#[test]
fn an_archive_gives_one_image_however_it_is_compressed() {
    let Some(lab) = lab() else { return };
    let root = lab.path("root");
    plant(&root);
    let plain = tar_of(&root);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let all = [("a", plain), ("b", gzip.finish().unwrap()), ("c", xz.finish().unwrap()), ("d", zstd)];
    let mut digests = Vec::new();
    for (name, bytes) in all {
        fs::write(lab.path(name), &bytes).unwrap();
        digests.push(lab.import(&lab.path(name)).unwrap_or_else(|error| panic!("{name}: {error}")).digest);
        lab.files.remove(&digests[0]).unwrap();
        // Wherever it is cut, it is noticed and nothing stays.
        for cut in [
            bytes.len() / 3,
            bytes.len() / 2 / 512 * 512,
            bytes.len() - 2,
            bytes.len() - 10_000.min(bytes.len() / 9),
        ] {
            let path = lab.path("cut");
            fs::write(&path, &bytes[..cut]).unwrap();
            // GNU tar pads with zeros to 10 KiB: cutting padding loses nothing.
            if name == "a" && bytes[cut.saturating_sub(1024)..].iter().all(|b| *b == 0) {
                continue;
            }
            let error = lab.refused(&path);
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{name} cut at {cut}: {error}");
        }
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

#[test]
fn an_archive_that_reaches_outside_is_refused_by_the_name_of_its_entry() {
    let Some(lab) = lab() else { return };
    let entry = |name: &[u8], kind: tar::EntryType, link: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name);
        gnu.linkname[..link.len()].copy_from_slice(link);
        header.set_size(if kind == tar::EntryType::Regular { 1 } else { 0 });
        header.set_cksum();
        header
    };
    let regular = tar::EntryType::Regular;
    let cases = [
        (entry(b"/etc/passwd", regular, b""), "/etc/passwd' has an absolute path"),
        (entry(b"a/../../b", regular, b""), "a/../../b' reaches outside"),
        (entry(b"..", tar::EntryType::Directory, b""), "..' reaches outside"),
        (entry(b"x", tar::EntryType::Link, b"../../etc/shadow"), "x' is a hard link to something outside"),
    ];
    for (header, said) in cases {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&entry(b"fine", tar::EntryType::Fifo, b""), std::io::empty()).unwrap();
        builder.append(&header, std::io::repeat(1).take(header.size().unwrap())).unwrap();
        fs::write(lab.path("evil.tar"), builder.into_inner().unwrap()).unwrap();
        let error = lab.refused(&lab.path("evil.tar"));
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains(said), "{error}");
    }
}

#[test]
fn long_links_survive_and_what_the_writer_would_drop_is_refused() {
    let Some(lab) = lab() else { return };
    let root = lab.path("root");
    plant(&root);
    let archive = lab.path("pax.tar");
    let tar = |flags: &[&str]| {
        let output =
            Command::new("tar").arg("-C").arg(&root).args(flags).arg(&archive).args(["bin", "pipe"]).output();
        assert!(output.unwrap().status.success());
    };
    tar(&["--format=pax", "-cf"]);
    let image = lab.import(&archive).unwrap();
    let long = "d".repeat(120);
    assert!(lab.list(&image).contains(&format!("/bin/far -> /{long}/{long}\n")), "{}", lab.list(&image));
    lab.files.remove(&image.digest).unwrap();

    // The same names again: tar takes the last, the writer the first.
    tar(&["--format=gnu", "-cf"]);
    tar(&["-rf"]);
    let error = lab.refused(&archive);
    assert!(error.message.contains("is there twice"), "{error}");

    let mut builder = tar::Builder::new(Vec::new());
    for name in ["a", "a/b"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, std::io::empty()).unwrap();
    }
    fs::write(&archive, builder.into_inner().unwrap()).unwrap();
    assert!(lab.refused(&archive).message.contains("lies below 'a', which is no directory"));
}

#[test]
fn a_squashfs_file_is_taken_as_it_is_once_it_proves_whole() {
    let Some(lab) = lab() else { return };
    let root = lab.path("root");
    plant(&root);
    // Noise, so that it has some size.
    let noise: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(root.join("noise"), noise).unwrap();
    let image = lab.import(&root).unwrap();
    let given = lab.path("given.img");
    fs::copy(lab.files.path(&image.digest).unwrap(), &given).unwrap();
    lab.files.remove(&image.digest).unwrap();
    lab.assert_empty();

    assert_eq!(lab.import(&given).unwrap().digest, image.digest);

    lab.files.remove(&image.digest).unwrap();
    let bytes = fs::read(&given).unwrap();
    fs::write(lab.path("cut"), &bytes[..bytes.len() / 2]).unwrap();
    assert!(lab.refused(&lab.path("cut")).message.contains("truncated"));
    let mut garbled = bytes.clone();
    let tables = garbled.len() - 4096;
    garbled[tables..].fill(0x5a);
    fs::write(lab.path("garbled"), garbled).unwrap();
    lab.refused(&lab.path("garbled"));
    fs::write(lab.path("head"), &bytes[..40]).unwrap();
    assert!(lab.refused(&lab.path("head")).message.contains("too short"));
}

#[test]
fn nothing_to_import_is_said_plainly() {
    let Some(lab) = lab() else { return };
    fs::create_dir_all(lab.path("hollow/inner")).unwrap();
    assert!(lab.refused(&lab.path("hollow")).message.contains("there is no file in it"));
    fs::write(lab.path("hollow.tar"), tar_of(&lab.path("hollow"))).unwrap();
    assert!(lab.refused(&lab.path("hollow.tar")).message.contains("there is no file in it"));
    fs::write(lab.path("zeros.tar"), [0; 10240]).unwrap();
    lab.refused(&lab.path("zeros.tar"));
    fs::write(lab.path("text"), "hello").unwrap();
    assert!(lab.refused(&lab.path("text")).message.contains("neither a directory, nor a tar"));
    assert!(lab.refused(&lab.path("absent")).message.contains("nothing of that name"));
    assert!(lab.refused(Path::new("relative")).message.contains("not absolute"));
    assert!(lab.refused(Path::new("/dev/null")).message.contains("neither a directory nor a file"));
}

#[test]
fn cancelling_leaves_nothing() {
    let Some(lab) = lab() else { return };
    let root = lab.path("root");
    plant(&root);
    fs::write(root.join("big"), vec![3; 64 << 20]).unwrap();
    fs::write(lab.path("big.tar"), tar_of(&root)).unwrap();
    for source in [root, lab.path("big.tar")] {
        let asked = Cell::new(0);
        let error = lab
            .import_unless(&source, &|| {
                asked.set(asked.get() + 1);
                asked.get() > 30
            })
            .unwrap_err();
        assert_eq!(Error::from(error).code, ErrorCode::Cancelled);
        lab.assert_empty();
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_noticed() {
    let Some(lab) = lab() else { return };
    let root = lab.path("root");
    fs::create_dir(&root).unwrap();
    let file = root.join("log");
    fs::write(&file, vec![1; 4 << 20]).unwrap();
    // A writer that is busy while the file goes by.
    let asked = Cell::new(0);
    let error = lab
        .import_unless(&root, &|| {
            asked.set(asked.get() + 1);
            if asked.get() == 10 {
                fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(2 << 20).unwrap();
            }
            false
        })
        .unwrap_err();
    let error = Error::from(error);
    assert!(error.message.contains("log: it changed while it was read"), "{error}");
    lab.assert_empty();
}

#[test]
fn an_ordinary_users_files_become_roots_and_what_he_cannot_read_is_named() {
    let Some(lab) = lab() else { return };
    let root = lab.path("root");
    plant(&root);
    if !rustix::process::geteuid().is_root() {
        fs::write(root.join("secret"), "s").unwrap();
        fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o0)).unwrap();
        assert!(lab.refused(&root).message.contains("secret: it cannot be read"));
        return;
    }
    // Root keeps ids; devices are root's to import.
    rustix::fs::chown(root.join("bin/busybox"), Some(rustix::fs::Uid::from_raw(1234)), None).unwrap();
    let image = lab.import(&root).unwrap();
    assert!(lab.list(&image).contains(" 1234/0 "), "{}", lab.list(&image));
    assert_eq!(fs::metadata(lab.files.path(&image.digest).unwrap()).unwrap().uid(), 0);
}
