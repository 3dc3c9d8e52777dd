//! Guests of a few instructions, as ELF files that every VMM starts by the PVH entry point (Xen's
//! docs/misc/pvh.pandoc): 32-bit protected mode, flat segments, no paging. They boot in no time, need
//! no kernel package, and run where an emulated KVM lets no stock kernel live.

const LOAD: u32 = 0x10_0000;

/// `hlt` for ever.
pub(crate) fn idle() -> Vec<u8> {
    vec![0xfa, 0xf4, 0xeb, 0xfd]
}

/// Writes text to the first serial port, then idles.
pub(crate) fn say(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend(idle());
    code
}

/// Writes SLP_TYP 5 and SLP_EN to the sleep control register of QEMU's microvm (its ACPI tables
/// put it at 0xfea00200).
pub(crate) fn power_off() -> Vec<u8> {
    let mut code = vec![0xc6, 0x05, 0x00, 0x02, 0xa0, 0xfe, 0x34]; // mov byte [0xfea00200], 0x34
    code.extend(idle());
    code
}

/// A triple fault: an interrupt with an empty descriptor table.
pub(crate) fn reset() -> Vec<u8> {
    // push 0; push 0; lidt [esp]; int3 — with esp set up first.
    vec![0xbc, 0x00, 0x00, 0x20, 0x00, 0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0xcc]
}

/// A reset by the keyboard controller, which Firecracker has for nothing else.
pub(crate) fn reset_line() -> Vec<u8> {
    let mut code = vec![0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
    code.extend(idle());
    code
}

/// Counts in memory for ever and writes each number to the first serial port: eight letters, `A` for
/// a nibble of 0 to `P` for one of 15.
pub(crate) fn count() -> Vec<u8> {
    count_and(Vec::new(), &[])
}

/// Writes to each page from 4 MiB on, as many MiB, and reads them all before it says a number.
pub(crate) fn count_in(mib: u32) -> Vec<u8> {
    count_and(each_page(WRITE, mib), &each_page([0x8b, 0x07], mib)) // mov eax, [edi]
}

/// Writes to each page from 4 MiB on, as many MiB, and looks at none of them again.
pub(crate) fn count_beside(mib: u32) -> Vec<u8> {
    count_and(each_page(WRITE, mib), &[])
}

const WRITE: [u8; 2] = [0x89, 0x3f]; // mov [edi], edi

fn each_page(access: [u8; 2], mib: u32) -> Vec<u8> {
    let mut code = vec![0xbf, 0, 0, 0x40, 0]; // mov edi, 0x400000
    code.extend(access);
    code.extend([0x81, 0xc7, 0, 0x10, 0, 0]); // add edi, 0x1000
    code.extend([0x81, 0xff]); // cmp edi, the end
    code.extend(((mib + 4) << 20).to_le_bytes());
    code.extend([0x72, 0xf0]); // jb to the access
    code
}

fn count_and(first: Vec<u8>, each: &[u8]) -> Vec<u8> {
    let mut code = first;
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    let again = code.len();
    code.extend(each);
    code.extend([0xff, 0x05, 0x00, 0x00, 0x20, 0x00]); // inc dword [0x200000]
    code.extend([0x8b, 0x1d, 0x00, 0x00, 0x20, 0x00]); // mov ebx, [0x200000]
    code.extend([0xb9, 8, 0, 0, 0]); // mov ecx, 8
    code.extend([0xc1, 0xc3, 4]); // rol ebx, 4
    code.extend([0x88, 0xd8, 0x24, 0x0f, 0x04, b'A', 0xee]); // mov al, bl; and al, 15; add al, 'A'; out dx, al
    code.extend([0xe2, 0xf4]); // loop to the rol
    code.extend([0xb0, b'\n', 0xee]); // mov al, '\n'; out dx, al
    code.extend([0xb9, 0, 0x20, 0, 0, 0x49, 0x75, 0xfd]); // mov ecx, 0x2000; dec ecx until it is 0
    code.push(0xe9); // jmp
    let back = again as i32 - (code.len() as i32 + 4);
    code.extend(back.to_le_bytes());
    code
}

/// The numbers that [`count`] wrote, as far as they are whole.
pub(crate) fn numbers(console: &str) -> Vec<u32> {
    let number = |line: &str| {
        let fine = line.len() == 8 && line.bytes().all(|b| (b'A'..=b'P').contains(&b));
        fine.then(|| line.bytes().fold(0, |n, b| n << 4 | u32::from(b - b'A')))
    };
    console.lines().filter_map(number).collect()
}

/// The ELF file around the code.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    const NOTE_AT: u64 = 64 + 2 * 56;
    const CODE_AT: u64 = 0x1000;
    let load = u64::from(LOAD);
    let mut note = Vec::new();
    // XEN_ELFNOTE_PHYS32_ENTRY
    for word in [4_u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(load.to_le_bytes());
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    for long in [load, 64, 0] {
        elf.extend(u64::to_le_bytes(long));
    }
    elf.extend([0; 4]);
    for half in [64_u16, 56, 2, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, flags: u32, at: u64, to: u64, length: u64, align: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for long in [at, to, to, length, length, align] {
            elf.extend(long.to_le_bytes());
        }
    };
    header(1, 7, CODE_AT, load, code.len() as u64, 0x1000);
    header(4, 4, NOTE_AT, load - 0x1000, note.len() as u64, 4);
    elf.extend(note);
    elf.resize(CODE_AT as usize, 0);
    elf.extend(code);
    elf
}
