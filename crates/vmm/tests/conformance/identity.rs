//! The *guest* level of what a copy of a machine is: another machine, before anything in it goes on.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use banger_channel::{Session, StreamEvent, StreamReceiver};
use banger_protocol::agent::frame::Lane;
use banger_protocol::agent::{ExecSpec, Identity, Request};
use banger_vmm::Machine;
use tokio::io::AsyncReadExt;

use crate::bench::{Bench, Subject, soon};
use crate::real::{boot, fresh, says, spec};

/// What runs while the machine is copied: one that counts, one that notes random numbers and who it is, and a hook.
const PREPARE: &str = r#"set -e
mkdir -p /etc/banger/restored.d
printf '#!/bin/sh\necho "$BANGER_VM_NAME $(hostname)" >/run/hook.new; mv /run/hook.new /run/hook\n' >/etc/banger/restored.d/10-note
chmod 755 /etc/banger/restored.d/10-note
echo 00000000000000000000000000000001 >/etc/machine-id
(i=0; while :; do i=$((i+1)); echo $i >/run/count; sleep 0.02; done) >/dev/null 2>&1 &
(while :; do r=$(head -c 32 /dev/urandom | sha256sum); read h </proc/sys/kernel/hostname; echo "${r%% *} $h"; done) >/run/notes 2>/dev/null &
until [ -s /run/notes ] && [ -s /run/count ]; do sleep 0.05; done"#;
/// A clone is told a time this far off, as if its template had been made long ago.
const LATER: Duration = Duration::from_secs(3600);

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

fn ns(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap()
}

fn command(script: &str, stdin: bool) -> Request {
    Request::Exec(ExecSpec {
        cwd: Some("/".into()),
        stdin,
        op_id: "op-000000000000".into(),
        ..ExecSpec::plain(&["sh", "-c", script])
    })
}

async fn become_another(machine: &dyn Machine, identity: &Identity) -> Session {
    let session = Session::connect(machine.connect_agent().await.unwrap(), fresh()).await.unwrap();
    let random = [fresh(), fresh()].concat();
    session.hello(ns(now() + LATER), random, Some(identity.clone())).await.unwrap();
    session
}

/// A file of the guest, by the agent alone.
async fn file(session: &Session, path: &str) -> String {
    let (_sender, receiver) = session.open(&Request::Pack { path: path.into() }).await.unwrap();
    let mut packed = Vec::new();
    soon(receiver.reader().read_to_end(&mut packed)).await.unwrap();
    let mut archive = tar::Archive::new(packed.as_slice());
    let mut text = String::new();
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
    text
}

fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).collect()
}

/// The next lines of a command that counts.
async fn counted(receiver: &mut StreamReceiver, text: &mut String, more: usize) {
    let begun = text.len();
    while lines(&text[begun..]).len() < more {
        match soon(receiver.next()).await.unwrap() {
            Some(StreamEvent::Data(Lane::Out, data)) => text.push_str(std::str::from_utf8(&data).unwrap()),
            Some(StreamEvent::Message(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn a_copy_is_another_machine_before_anything_in_it_goes_on(subject: Subject) {
    let first = Bench::new(&subject);
    let (machine, session) = boot(&first).await;
    says(&session, PREPARE).await;
    // Given a command whose output goes to a host, and one that reads from it
    let counts = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/run/stream; sleep 0.02; done";
    let (_sender, mut stream) = session.open(&command(counts, false)).await.unwrap();
    let (reader, _receiver) =
        session.open(&command("cat; echo end >/run/end; sleep 1000", true)).await.unwrap();
    let mut text = String::new();
    counted(&mut stream, &mut text, 3).await;
    // When the guest stands still and is copied
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let last = async { Ok(session.call(&Request::Freeze).await.map(drop)?) };
    soon(machine.snapshot(dir.path(), Box::pin(last))).await.unwrap();
    fs::copy(first.files().join("system.img"), dir.path().join("system.img")).unwrap();
    soon(machine.resume()).await.unwrap();
    // Then nothing in it moves, though its CPUs run
    let still = [file(&session, "/run/notes").await, file(&session, "/run/count").await];
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(still, [file(&session, "/run/notes").await, file(&session, "/run/count").await]);
    // And once thawed, the command goes on to the host that it had, without a gap
    soon(session.call(&Request::Thaw { unix_ns: ns(now()) })).await.unwrap();
    counted(&mut stream, &mut text, 5).await;
    let numbers: Vec<usize> = lines(&text).iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
    assert_eq!(says(&session, "cat /run/end 2>/dev/null || echo none").await, "none");

    let still = lines(&still[0]);
    let mut seen = vec![after(&session, &still, "bench").await];
    for round in 1..=2 {
        let other = Bench::new(&subject);
        let (clone, hostname) = (restored(&subject, &other, dir.path()).await, format!("clone-{round}"));
        // Given that a host takes its time, in which nothing in the clone may move
        tokio::time::sleep(Duration::from_millis(300)).await;
        let id = format!("{round:032x}0").split_off(1);
        let identity = Identity {
            hostname: hostname.clone(),
            machine_id: Some(id.clone()),
            network: None,
            rehearsal: false,
        };
        let own = soon(become_another(&*clone, &identity)).await;
        // Then it is who it was told to be, and was so before anything ran
        seen.push(after(&own, &still, &hostname).await);
        is_named(&own, &hostname, &id).await;
        assert_eq!(
            says(&own, "until [ -e /run/hook ]; do sleep 0.05; done; cat /run/hook").await,
            format!("{hostname} {hostname}")
        );
        // And all goes on, also what a host listened to; what read from one is at its end
        for count in ["/run/count", "/run/stream"] {
            let goes_on = format!("a=$(cat {count}); until [ $(cat {count}) -gt $a ]; do sleep 0.05; done");
            says(&own, &goes_on).await;
        }
        says(&own, "until [ -e /run/end ]; do sleep 0.05; done").await;
        // And it can be copied in turn
        soon(own.call(&Request::Freeze)).await.unwrap();
        soon(own.call(&Request::Thaw { unix_ns: ns(now()) })).await.unwrap();
        soon(clone.stop()).await.unwrap();
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "all draw other random numbers: {seen:?}");
    drop(reader);
    soon(machine.stop()).await.unwrap();
}

async fn restored(subject: &Subject, bench: &Bench, from: &Path) -> Arc<dyn Machine> {
    let own = bench.files().join("system.img");
    fs::copy(from.join("system.img"), &own).unwrap();
    soon(subject.driver.restore(spec(bench, &own), from)).await.unwrap()
}

/// Checks what was noted since the standstill; the first random number that this machine drew by itself.
async fn after(session: &Session, still: &[&str], hostname: &str) -> String {
    says(session, &format!("until [ $(wc -l </run/notes) -gt {} ]; do sleep 0.05; done", still.len() + 3))
        .await;
    let notes = file(session, "/run/notes").await;
    let notes = lines(&notes);
    assert_eq!(notes.get(..still.len()).unwrap(), still, "what was noted before is lost");
    // A line whose number and name were read before the standstill may be written after it.
    let mut new = notes.iter().skip(still.len()).enumerate();
    let strangers: Vec<_> =
        new.by_ref().filter(|(_, line)| !line.ends_with(&format!(" {hostname}"))).map(|(i, _)| i).collect();
    assert!(strangers.is_empty() || strangers == [0], "{strangers:?} of {notes:?}");
    // The number of the line after next was drawn after the standstill in any case.
    notes.get(still.len() + 2).unwrap().split(' ').next().unwrap().to_owned()
}

async fn is_named(session: &Session, hostname: &str, id: &str) {
    assert_eq!(says(session, "hostname; cat /etc/hostname").await, format!("{hostname}\n{hostname}"));
    let hosts = says(session, "cat /etc/hosts").await;
    assert!(hosts.contains(&format!("127.0.1.1\t{hostname}")) && !hosts.contains("bench"), "{hosts}");
    assert_eq!(says(session, "cat /etc/machine-id").await, id);
    // The clock: whole seconds, between the host's before and after, give or take a tenth.
    let tenth = Duration::from_millis(100);
    let before = now() + LATER - tenth;
    let date: u64 = says(session, "date +%s").await.parse().unwrap();
    let latest = now() + LATER + tenth;
    assert!((before.as_secs()..=latest.as_secs()).contains(&date), "{before:?} {date} {latest:?}");
    // And the time since the boot did not jump with it.
    let uptime: f64 = says(session, "cut -d' ' -f1 /proc/uptime").await.parse().unwrap();
    assert!(uptime < LATER.as_secs_f64() / 2.0, "{uptime}");
}
