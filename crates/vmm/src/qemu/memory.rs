//! A machine's memory, read from outside while its VMM runs or stands still: which pages of its mapping are
//! the VMM's own (/proc/PID/pagemap), and what is in them (/proc/PID/mem). The VMM is not asked, and needs no
//! right for it. Must never trust where the VMM says its memory is: no other process's memory is read, and
//! no more of it than the machine has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::process::ProcessId;
use crate::{Result, VmmError};

/// Of the only architecture there is.
const PAGE: usize = 4096;
const PAGE_BYTES: u64 = PAGE as u64;
/// What a thread takes at once.
const PART: u64 = 8 << 20;
/// What is read at once, at most.
const READ: usize = 1 << 20;
/// Pages that are read, or written, along with those on both sides of them: cheaper than two calls.
const GAP: usize = 4;
/// More threads find nothing to do on the file's side.
const THREADS: usize = 4;

/// The bits of an entry of pagemap (the kernel's Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// The memory of one machine.
#[derive(Debug)]
pub(super) struct Ram {
    pagemap: File,
    memory: File,
    at: u64,
    size: u64,
}

/// What stands in the file that memory is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Nothing but a hole.
    Empty,
    /// What the memory was a while ago: only what is other is written.
    Earlier,
}

impl Ram {
    /// That of a process, `size` bytes from `at` on.
    pub(super) fn of(vm: &str, process: &ProcessId, at: u64, size: u64) -> Result<Self> {
        let open = |name: &str| {
            let path = PathBuf::from(format!("/proc/{}/{name}", process.pid));
            File::open(&path).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => VmmError::NoSnapshot {
                    vm: vm.to_owned(),
                    why: "this host lets nobody read another process's memory (kernel.yama.ptrace_scope)"
                        .to_owned(),
                },
                _ => VmmError::file("open", &path)(error),
            })
        };
        let ram = Self { pagemap: open("pagemap")?, memory: open("mem")?, at, size };
        // Both are of one process for good; looked at only now, it is the one that was meant.
        if process.is_alive() { Ok(ram) } else { Err(VmmError::NotRunning { vm: vm.to_owned() }) }
    }

    /// Writes what is private to the process, so that the file is the memory where it was the file that the
    /// process began with. Blocks.
    pub(super) fn write_to(&self, file: &File, target: Target) -> io::Result<()> {
        let next = AtomicU64::new(0);
        let work = || {
            let mut buffers = Buffers::default();
            loop {
                let from = next.fetch_add(PART, Ordering::Relaxed);
                if from >= self.size {
                    return Ok(());
                }
                let to = (from + PART).min(self.size);
                self.part(from, to, file, target, &mut buffers)
                    // One that fails is the end for all.
                    .inspect_err(|_| next.store(self.size, Ordering::Relaxed))?;
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS));
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut outcome = work();
            for other in others {
                let ended = other.join().unwrap_or_else(|_| Err(io::Error::other("a thread failed")));
                outcome = outcome.and(ended);
            }
            outcome
        })
    }

    fn part(&self, from: u64, to: u64, file: &File, target: Target, buffers: &mut Buffers) -> io::Result<()> {
        let Buffers { entries, now, then } = buffers;
        let pages = usize::try_from((to - from) / PAGE_BYTES).unwrap_or(0);
        entries.resize(pages * 8, 0);
        self.pagemap.read_exact_at(entries, (self.at + from) / PAGE_BYTES * 8)?;
        let own = entries.chunks_exact(8).map(|entry| {
            let entry = entry.iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
            entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT
        });
        for (first, count) in runs(own, READ / PAGE) {
            let at = from + (first * PAGE) as u64;
            now.resize(count * PAGE, 0);
            self.memory.read_exact_at(now, self.at + at)?;
            let other: Vec<bool> = if target == Target::Empty {
                now.chunks_exact(PAGE).map(|page| !is_zero(page)).collect()
            } else {
                then.resize(count * PAGE, 0);
                file.read_exact_at(then, at)?;
                now.chunks_exact(PAGE).zip(then.chunks_exact(PAGE)).map(|(a, b)| a != b).collect()
            };
            for (first, count) in runs(other.into_iter(), READ / PAGE) {
                let bytes = now.get(first * PAGE..(first + count) * PAGE).unwrap_or_default();
                file.write_all_at(bytes, at + (first * PAGE) as u64)?;
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Buffers {
    entries: Vec<u8>,
    now: Vec<u8>,
    then: Vec<u8>,
}

/// Runs of what is wanted as (first, count), no longer than `most`, over gaps that are not worth a call.
fn runs(wanted: impl Iterator<Item = bool>, most: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, _) in wanted.enumerate().filter(|(_, wanted)| *wanted) {
        match runs.last_mut() {
            Some((first, count)) if index - (*first + *count) <= GAP && index - *first < most => {
                *count = index - *first + 1;
            }
            _ => runs.push((index, 1)),
        }
    }
    runs
}

/// In blocks, each without an early end, so that the compiler takes many bytes at a time.
fn is_zero(page: &[u8]) -> bool {
    page.chunks(256).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_go_over_small_gaps_and_are_not_too_long() {
        let of = |text: &str, most| runs(text.chars().map(|c| c == 'x'), most);
        assert_eq!(of("", 9), []);
        assert_eq!(of("..x..", 9), [(2, 1)]);
        assert_eq!(of("x....x.....x", 99), [(0, 6), (11, 1)]);
        assert_eq!(of("xxxxx", 2), [(0, 2), (2, 2), (4, 1)]);
    }

    /// Memory of this very process, mapped from a file, privately.
    struct Mapped {
        at: *mut libc::c_void,
        length: usize,
    }

    #[expect(unsafe_code, reason = "the test needs a mapping of its own")]
    impl Mapped {
        fn new(file: Option<&File>, length: usize) -> Self {
            use std::os::fd::AsRawFd as _;
            let (fd, more) = file.map_or((-1, libc::MAP_ANONYMOUS), |f| (f.as_raw_fd(), 0));
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | more);
            // SAFETY: a fresh mapping at an address that the kernel chooses.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            Self { at, length }
        }

        fn bytes(&mut self) -> &mut [u8] {
            // SAFETY: mapped until the drop, and borrowed with the value.
            unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.length) }
        }

        fn ram(&self) -> Ram {
            let me = ProcessId::of(std::process::id()).unwrap().unwrap();
            Ram::of("me", &me, self.at as u64, self.length as u64).unwrap()
        }
    }

    #[expect(unsafe_code, reason = "as above")]
    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: it is ours, and nobody has a reference into it any more.
            unsafe { libc::munmap(self.at, self.length) };
        }
    }

    fn file(length: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length as u64).unwrap();
        file
    }

    fn contents(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn memory_of_its_own_is_written_and_what_nobody_touched_stays_a_hole() {
        use std::os::unix::fs::MetadataExt as _;
        let length = 20 << 20;
        let mut memory = Mapped::new(None, length);
        for at in [0, 4096, 5 << 20, (9 << 20) + 17, length - 1] {
            memory.bytes()[at] = 7;
        }
        // Touched, but zero.
        memory.bytes()[15 << 20] = 0;
        let file = file(length);
        memory.ram().write_to(&file, Target::Empty).unwrap();
        assert!(contents(&file) == memory.bytes());
        let blocks = file.metadata().unwrap().blocks() * 512;
        assert!(blocks < 256 << 10, "{blocks} bytes are stored");
        // And what changes later is written over it, zeros too
        memory.bytes()[5 << 20] = 0;
        memory.bytes()[6 << 20] = 9;
        memory.ram().write_to(&file, Target::Earlier).unwrap();
        assert!(contents(&file) == memory.bytes());
    }

    #[test]
    fn of_a_file_that_is_mapped_privately_only_what_was_written_is_read() {
        let length = 4 << 20;
        let base = file(length);
        base.write_all_at(&vec![3; length], 0).unwrap();
        let mut memory = Mapped::new(Some(&base), length);
        // Given pages that were only read, and some that were written
        assert_eq!(memory.bytes()[2 << 20], 3);
        memory.bytes()[1 << 20] = 8;
        memory.bytes()[(3 << 20)..(3 << 20) + 4096].fill(0);
        let (copy, fresh) = (file(length), file(length));
        copy.write_all_at(&vec![3; length], 0).unwrap();
        memory.ram().write_to(&copy, Target::Earlier).unwrap();
        assert!(contents(&copy) == memory.bytes());
        // Then only the one page with something in it is written to an empty file
        memory.ram().write_to(&fresh, Target::Empty).unwrap();
        let written = contents(&fresh).iter().filter(|byte| **byte != 0).count();
        assert_eq!(written, 4096);
    }
}
