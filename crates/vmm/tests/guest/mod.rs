//! Guests of a few instructions, as ELF files that QEMU starts by the PVH entry point (Xen's
//! docs/misc/pvh.pandoc): 32-bit protected mode, flat segments, no paging.

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

/// The ELF file around the code.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    const NOTE_AT: u32 = 52 + 2 * 32;
    const CODE_AT: u32 = 0x1000;
    let mut note = Vec::new();
    // XEN_ELFNOTE_PHYS32_ENTRY; QEMU reads eight bytes of the value.
    for word in [4_u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(u64::from(LOAD).to_le_bytes());
    let length = code.len() as u32;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 3, 0]); // executable, i386
    for word in [1, LOAD, 52, 0, 0] {
        elf.extend(u32::to_le_bytes(word));
    }
    for half in [52_u16, 32, 2, 40, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let load = [1, CODE_AT, LOAD, LOAD, length, length, 7, 0x1000];
    let note_header = [4, NOTE_AT, LOAD - 0x1000, LOAD - 0x1000, note.len() as u32, note.len() as u32, 4, 4];
    for word in load.into_iter().chain(note_header) {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(note);
    elf.resize(CODE_AT as usize, 0);
    elf.extend(code);
    elf
}
