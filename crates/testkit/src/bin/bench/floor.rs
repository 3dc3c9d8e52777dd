//! The floor under a cold run: a hand-made QEMU command line with the same machine, CPU, memory and
//! kernel, no disk, no network, no channel, and a first process that switches the machine off.

use std::process::{Command, Stdio};
use std::time::Instant;

use banger_testkit::measure::ms;
use banger_testkit::{Feed, Run, Sandbox};

/// All it does is `reboot(LINUX_REBOOT_CMD_POWER_OFF)`, see reboot(2).
const INIT: &str = r#"
__attribute__((noreturn)) void _start(void) {
    for (;;) {
        long result;
        __asm__ volatile("syscall" : "=a"(result)
            : "a"(169L), "D"(0xfee1deadL), "S"(672274793L), "d"(0x4321fedcL), "r"(0L) : "rcx", "r11", "memory");
    }
}
"#;

/// A machine that ends as soon as it can.
pub(crate) struct Floor {
    program: String,
    arguments: Vec<String>,
    banger_initramfs: u64,
}

impl Floor {
    /// The machine that banger makes in this sandbox, without everything that is banger's.
    pub(crate) fn of(sandbox: &Sandbox) -> Self {
        let vm = sandbox.vm("model", "bare", &[]);
        let pid = vm.show()["pid"].as_u64().expect("it runs");
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("its command line");
        let words: Vec<String> =
            line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        let after = |flag: &str| {
            let at = words.iter().position(|w| w == flag).unwrap_or_else(|| panic!("no {flag} in {words:?}"));
            words.get(at + 1).expect("its value").clone()
        };
        let banger_initramfs = std::fs::metadata(after("-initrd")).expect("banger's initramfs").len();
        vm.delete();
        let append: Vec<String> =
            after("-append").split(' ').filter(|w| !w.starts_with("banger.")).map(str::to_owned).collect();
        let initramfs = sandbox.work("floor.cpio");
        std::fs::write(&initramfs, make_initramfs(sandbox)).expect("a file");
        let mut arguments: Vec<String> =
            ["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"].map(str::to_owned).into();
        for flag in ["-machine", "-accel", "-cpu", "-smp", "-m", "-kernel"] {
            arguments.extend([flag.to_owned(), after(flag)]);
        }
        arguments.extend(["-initrd".to_owned(), initramfs.to_string_lossy().into_owned()]);
        arguments.extend(["-append".to_owned(), append.join(" ")]);
        arguments.extend(["-serial", "null"].map(str::to_owned));
        Self { program: words.first().expect("a program").clone(), arguments, banger_initramfs }
    }

    /// Boots it and waits for its end; milliseconds. An emulated machine hangs now and then before
    /// its first instruction: such a boot is ended and another one measured.
    pub(crate) fn boot(&self) -> f64 {
        for _ in 0..3 {
            let mut command = Command::new("timeout");
            command.args(["--signal=KILL", "60", &self.program]).args(&self.arguments);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let began = Instant::now();
            let status = command.status().expect("QEMU runs");
            if status.success() {
                return ms(began.elapsed());
            }
            eprintln!("bench: a boot of the floor did not end ({status}); once more");
        }
        panic!("the floor does not boot: {} {}", self.program, self.arguments.join(" "));
    }

    /// How large banger's own initramfs for this kernel is.
    pub(crate) fn initramfs_bytes(&self) -> u64 {
        self.banger_initramfs
    }
}

fn make_initramfs(sandbox: &Sandbox) -> Vec<u8> {
    let dir = sandbox.work("floor");
    std::fs::create_dir(&dir).expect("a directory");
    std::fs::write(dir.join("init.c"), INIT).expect("a file");
    let flags = ["-static", "-nostdlib", "-ffreestanding", "-Os", "-o", "init", "init.c"];
    Run::new("cc").args(flags).dir(&dir).env("TMPDIR", &dir).go().ok().done();
    let archive = Run::new("cpio").args(["-o", "-H", "newc", "--quiet"]).dir(&dir);
    archive.feed(Feed::Bytes(b"init\n".to_vec())).go().ok().stdout
}
