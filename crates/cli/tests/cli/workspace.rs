use std::fs;

use serde_json::json;

use crate::scripted::{Place, Reply};

const PATCH: &[u8] = b"diff --git a/x b/x\nline\n\xff\0binary\n";

fn export(reply: &mut Reply, promised: usize) {
    let summary = json!({
        "base_commit": "abc", "has_changes": true, "patch_bytes": promised,
        "files": [{"path": "a b", "change": "modified"}, {"path": "new", "change": "added"}],
    });
    reply.begin("application/vnd.banger.export");
    // The cut between summary and patch is anywhere.
    let mut whole = format!("{summary}\n").into_bytes();
    whole.extend_from_slice(PATCH);
    let (a, b) = whole.split_at(whole.len() - PATCH.len() / 2);
    reply.chunk(a);
    reply.chunk(b);
    reply.end();
}

#[test]
fn the_patch_is_on_stdout_or_in_a_file_byte_for_byte() {
    let place = Place::new();
    let log = place.serve(|_, reply| export(reply, PATCH.len()));
    let ran = place.run(&["vm", "workspace", "export", "web", "--base", "main", "--guest-path", "/w"]);
    assert_eq!((ran.status, &ran.stdout[..], &*ran.stderr), (0, PATCH, ""));
    assert_eq!(
        log.body("POST /v1/vms/web/workspace/export"),
        json!({"base": "main", "guest_path": "/w", "max_bytes": null})
    );

    let ran = place.run(&["vm", "workspace", "export", "web", "-o", "out.patch"]);
    assert_eq!((ran.status, &ran.stdout[..]), (0, &b""[..]));
    assert_eq!(fs::read(place.path("out.patch")).unwrap(), PATCH);
    let ran = place.run(&["vm", "workspace", "export", "web", "-o", "/dev/stdout", "-q"]);
    assert_eq!(&ran.stdout[..], PATCH, "what is no file is written to directly");
}

#[test]
fn names_and_the_summary_come_without_the_patch() {
    let place = Place::new();
    place.serve(|_, reply| export(reply, PATCH.len()));
    assert_eq!(place.run(&["vm", "workspace", "export", "web", "--names-only"]).text(), "a b\nnew\n");
    let json = place.run(&["vm", "workspace", "export", "web", "--json"]).json();
    assert_eq!(json["files"][1], json!({"path": "new", "change": "added"}));
}

#[test]
fn a_patch_that_is_not_whole_leaves_the_file_as_it_was() {
    let place = Place::new();
    place.serve(|_, reply| export(reply, PATCH.len() + 1));
    fs::write(place.path("out.patch"), "old").unwrap();
    let ran = place.run(&["vm", "workspace", "export", "web", "-o", "out.patch"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("1 bytes of the patch are missing"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(place.path("out.patch")).unwrap(), "old");
    let left: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn prepare_copies_the_repository_we_are_in_unless_told_otherwise() {
    let place = Place::new();
    let plan = json!({
        "source_path": "/repo", "guest_path": "/root/repo", "mode": "shallow_overlay", "base_commit": "0123456789abcdef",
        "branch": "b", "depth": 10, "files": ["a"], "bytes": 2048, "skipped_untracked": 2,
        "updated": false, "sent": 1, "sent_bytes": 2048, "removed": 0,
    });
    let log = place.serve(move |_, reply| reply.result(&plan));
    let ran = place.run(&["vm", "workspace", "prepare", "web", "--branch", "b", "--readonly"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(
        ran.stderr,
        "1 file, 2 KiB, are in /root/repo, based on 0123456789ab\n\
         untracked and left behind: 2 files; --include-untracked copies them too\n"
    );
    let body = log.body("POST /v1/vms/web/workspace/prepare");
    assert_eq!(body["path"], place.path("").canonicalize().unwrap().to_str().unwrap());
    assert_eq!((&body["branch"], &body["readonly"]), (&json!("b"), &json!(true)));
}
