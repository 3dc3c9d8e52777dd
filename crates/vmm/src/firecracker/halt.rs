//! Firecracker's machine has no power switch: a guest that powers off halts for ever, and its kernel
//! says so on the console. This watches for those words. A guest that says them without having halted
//! ends only itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::inotify::WatchFlags;

use super::changes::Changes;

/// The kernel's last words (kernel/reboot.c), of old and new ones.
const WORDS: [&str; 3] = ["reboot: Power down", "reboot: System halted", "reboot: Power off not available"];
/// Longer than any line with them.
const LINE_MAX: u64 = 200;

/// Returns when the guest has halted; never, when the console cannot be watched. What stands before
/// `start` is of an earlier machine.
pub(super) async fn halted(console: &Path, start: u64) {
    if let Err(error) = watch(console, start).await {
        tracing::warn!(%error, "a console is not watched: a guest that powers off will not end its machine");
        std::future::pending::<()>().await;
    }
}

async fn watch(console: &Path, mut start: u64) -> io::Result<()> {
    let file = File::open(console)?;
    // Watched before the first look, so that no change is missed.
    let changes = Changes::of(console, WatchFlags::MODIFY)?;
    while !ends_with_words(&file, &mut start)? {
        changes.next().await?;
    }
    Ok(())
}

/// Whether the words are the last that the machine said: a kernel that runs on says more.
fn ends_with_words(file: &File, start: &mut u64) -> io::Result<bool> {
    let size = file.metadata()?.len();
    if size < *start {
        // It was cut to size, and what was kept is its end.
        *start = 0;
    }
    let from = size.saturating_sub(LINE_MAX).max(*start);
    let mut end = [0; LINE_MAX as usize];
    let n = file.read_at(&mut end, from)?;
    let text = String::from_utf8_lossy(end.get(..n).unwrap_or_default());
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    Ok(WORDS.iter().any(|words| last.contains(words)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[tokio::test]
    async fn the_kernels_last_words_are_heard_in_whatever_pieces_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        // Given what an earlier machine said
        std::fs::write(&path, "[    9.9] reboot: System halted\n").unwrap();
        let start = path.metadata().unwrap().len();
        let watch = tokio::spawn({
            let path = path.clone();
            async move { halted(&path, start).await }
        });
        let mut console = File::options().append(true).open(&path).unwrap();
        let mut say = async |text: &str| {
            console.write_all(text.as_bytes()).unwrap();
            // Long enough for a watcher that hears too much to be caught.
            tokio::time::sleep(Duration::from_millis(20)).await;
            console.try_clone().unwrap()
        };
        // Then neither that, nor words that the machine outlives, nor half of them count
        say("Linux version\n").await;
        assert!(!watch.is_finished());
        say("cat: reboot: Power down\n[    1.0] more\n[   10.0] reboot: Sys").await;
        assert!(!watch.is_finished());
        // Nor does a console that is cut down meanwhile matter
        say("").await.set_len(5).unwrap();
        say("\n[   11.0] reboot: Power ").await;
        assert!(!watch.is_finished());
        say("down\n").await;
        tokio::time::timeout(Duration::from_secs(10), watch).await.unwrap().unwrap();
        // And whoever comes later finds them too
        tokio::time::timeout(Duration::from_secs(10), halted(&path, 0)).await.unwrap();
    }
}
