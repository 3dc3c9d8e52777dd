//! What is true inside a guest, asked through `exec`.

use crate::Vm;

/// The resident memory of the agent, KiB, as the guest's kernel counts it.
#[must_use]
pub fn agent_rss_kib(vm: &Vm<'_>) -> u64 {
    // The agent is whoever runs a file of that name; its image in the initramfs is /init.
    let script = "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' <$p/cmdline)\" in \
         @banger-agent*|/init*) sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' $p/status;; esac; done";
    let out = vm.sh(script).go().ok();
    let all: Vec<u64> = out.text().lines().filter_map(|l| l.trim().parse().ok()).collect();
    assert!(!all.is_empty(), "no agent among the guest's processes: {}", vm.sh("ps").go());
    all.iter().sum()
}

/// The resident memory of a process on the host, KiB.
#[must_use]
pub fn rss_kib(pid: u32) -> u64 {
    field_kib(pid, "VmRSS:")
}

/// The memory of a process on the host, KiB, where what it shares with others counts for each of them in part.
#[must_use]
pub fn pss_kib(pid: u32) -> u64 {
    field_of(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// The most resident memory a process on the host has had since [`forget_peak`], KiB.
#[must_use]
pub fn peak_rss_kib(pid: u32) -> u64 {
    field_kib(pid, "VmHWM:")
}

/// Has the kernel begin anew with a process's peak (proc(5), `clear_refs`).
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process lives and is ours");
}

fn field_kib(pid: u32, field: &str) -> u64 {
    field_of(&format!("/proc/{pid}/status"), field)
}

fn field_of(file: &str, field: &str) -> u64 {
    let status = std::fs::read_to_string(file).expect("the process lives");
    let line = status.lines().find(|l| l.starts_with(field)).expect("a size");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}
