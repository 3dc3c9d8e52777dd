//! Files in and out through the whole channel, and archives that mean harm.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crate::fixture;
use banger_channel::{ChannelError, Session};
use banger_model::{ByteString, ErrorCode};
use banger_protocol::agent::{Reply, Request, UnpackSpec};
use tar::{Builder, EntryType, Header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn unpack(s: &Session, dest: &Path, must_be_empty: bool, tar: &[u8]) -> Result<Reply, ChannelError> {
    let dest = ByteString::from(dest.as_os_str().to_owned());
    let (sender, receiver) = s.open(&Request::Unpack(UnpackSpec { dest, must_be_empty })).await.unwrap();
    let mut writer = sender.writer();
    let feed = async {
        // A refused archive is not read to its end.
        let _ = writer.write_all(tar).await;
        let _ = writer.shutdown().await;
    };
    tokio::join!(feed, receiver.reader().reply()).1
}

async fn pack(s: &Session, path: &Path) -> Result<Vec<u8>, std::io::Error> {
    let (_sender, receiver) =
        s.open(&Request::Pack { path: path.as_os_str().to_owned().into() }).await.unwrap();
    let mut reader = receiver.reader();
    let mut tar = Vec::new();
    reader.read_to_end(&mut tar).await?;
    assert_eq!(reader.reply().await.unwrap(), Reply::Done);
    Ok(tar)
}

/// Kind, path, link target, contents.
type Raw<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// An archive of raw entries. Paths are written as they are.
fn archive(entries: &[Raw<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, path, link, contents) in entries {
        let mut header = Header::new_gnu();
        let raw = header.as_gnu_mut().unwrap();
        raw.name[..path.len()].copy_from_slice(path.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_000_000_000);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        tar.append(&header, *contents).unwrap();
    }
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn a_tree_survives_the_way_out_and_in() {
    // Given a tree with all that matters.
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("new/to"));
    std::fs::create_dir_all(from.join("sub/empty")).unwrap();
    let long = "x".repeat(180);
    std::fs::write(from.join("sub").join(&long), b"long name").unwrap();
    std::fs::write(from.join("run"), vec![5; 300_000]).unwrap();
    std::fs::set_permissions(from.join("run"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    std::fs::hard_link(from.join("run"), from.join("sub/again")).unwrap();
    symlink("/nowhere/at all", from.join("link")).unwrap();
    let sparse = std::fs::File::create(from.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::fs::set_permissions(from.join("sub/empty"), std::fs::Permissions::from_mode(0o500)).unwrap();
    let old = rustix::fs::Timespec { tv_sec: 1_234_567_890, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
    for path in ["run", "sub/empty", "sub"] {
        rustix::fs::utimensat(rustix::fs::CWD, from.join(path), &times, rustix::fs::AtFlags::empty())
            .unwrap();
    }
    // When it is packed and unpacked elsewhere.
    let tar = pack(&s, &from).await.unwrap();
    assert_eq!(unpack(&s, &to, true, &tar).await, Ok(Reply::Done));
    // Then it is the same.
    assert_eq!(std::fs::read(to.join("sub").join(&long)).unwrap(), b"long name");
    let run = std::fs::metadata(to.join("run")).unwrap();
    assert_eq!((run.mode() & 0o7777, run.len(), run.mtime()), (0o4751, 300_000, 1_234_567_890));
    assert_eq!(run.ino(), std::fs::metadata(to.join("sub/again")).unwrap().ino());
    assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere/at all"));
    let sparse = std::fs::metadata(to.join("sparse")).unwrap();
    assert!(sparse.len() == 8 << 20 && sparse.blocks() < 1000, "{} blocks", sparse.blocks());
    let empty = std::fs::metadata(to.join("sub/empty")).unwrap();
    assert_eq!((empty.mode() & 0o7777, empty.mtime()), (0o500, 1_234_567_890));
    assert_eq!(std::fs::metadata(to.join("sub")).unwrap().mtime(), 1_234_567_890);
}

#[tokio::test]
async fn hostile_archives_write_nothing_outside() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    let out = outside.to_str().unwrap();
    let secret = format!("{out}/secret");
    let cases: [&[Raw<'_>]; 8] = [
        &[(Regular, "../outside/a", "", b"x")],
        &[(Regular, "ok/../../outside/a", "", b"x")],
        &[(Symlink, "planted", out, b""), (Regular, "planted/a", "", b"x")],
        &[(Symlink, "planted", "../outside", b""), (Directory, "planted/d", "", b"")],
        &[(Symlink, "planted", out, b""), (Link, "hard", "planted/secret", b"")],
        &[(Link, "hard", "../outside/secret", b"")],
        &[(Link, "hard", secret.as_str(), b""), (Regular, "hard", "", b"overwritten")],
        &[(EntryType::new(b'Z'), "odd", "", b"")],
    ];
    for (i, entries) in cases.into_iter().enumerate() {
        let dest = dir.path().join(format!("dest{i}"));
        let got = unpack(&s, &dest, false, &archive(entries)).await;
        assert!(matches!(got, Err(ChannelError::Guest { .. })), "case {i}: {got:?}");
    }
    // A file through a planted link of its own name replaces the link, not its target.
    let dest = dir.path().join("replaced");
    let tar = archive(&[(Symlink, "f", secret.as_str(), b""), (Regular, "f", "", b"mine")]);
    assert_eq!(unpack(&s, &dest, false, &tar).await, Ok(Reply::Done));
    assert_eq!(std::fs::read(dest.join("f")).unwrap(), b"mine");
    // An absolute name is below the destination.
    let tar = archive(&[(Regular, "/etc/banger-test", "", b"mine")]);
    assert_eq!(unpack(&s, &dest, false, &tar).await, Ok(Reply::Done));
    assert_eq!(std::fs::read(dest.join("etc/banger-test")).unwrap(), b"mine");

    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

#[tokio::test]
async fn rubbish_truncation_and_full_directories_are_errors() {
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    let rubbish: Vec<u8> = (0..4096u32).map(|i| (i * 7 + 13) as u8).collect();
    assert!(unpack(&s, &dir.path().join("a"), false, &rubbish).await.is_err());
    let whole = archive(&[(EntryType::Regular, "f", "", &[1; 5000])]);
    assert!(unpack(&s, &dir.path().join("b"), false, &whole[..3000]).await.is_err());
    std::fs::create_dir(dir.path().join("full")).unwrap();
    std::fs::write(dir.path().join("full/x"), "").unwrap();
    let Err(ChannelError::Guest { code, message }) = unpack(&s, &dir.path().join("full"), true, &whole).await
    else {
        panic!("it was not refused")
    };
    assert_eq!(code, ErrorCode::AlreadyExists);
    assert!(message.ends_with("full in the guest is not empty"), "{message}");
    assert!(!dir.path().join("full/f").exists());
    assert!(unpack(&s, Path::new("relative"), false, &whole).await.is_err());
    assert!(pack(&s, &dir.path().join("absent")).await.is_err());
    // The agent is none the worse.
    assert_eq!(unpack(&s, &dir.path().join("c"), true, &whole).await, Ok(Reply::Done));
}

#[tokio::test]
async fn a_single_file_has_its_own_name() {
    let s = fixture::session().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("note"), "text").unwrap();
    let tar = pack(&s, &dir.path().join("note")).await.unwrap();
    let mut archive = tar::Archive::new(tar.as_slice());
    let mut entries = archive.entries().unwrap();
    let mut entry = entries.next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap(), Path::new("note"));
    let mut text = String::new();
    entry.read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
}

#[tokio::test]
async fn outside_a_guest_the_machine_is_left_alone() {
    let s = fixture::session().await;
    for request in [Request::SetTime { unix_ns: 0 }, Request::AddEntropy { bytes: vec![1; 8] }] {
        let Err(ChannelError::Guest { code, .. }) = s.call(&request).await else { panic!("{request:?}") };
        assert_eq!(code, ErrorCode::Unsupported);
    }
}
