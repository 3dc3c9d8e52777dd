//! The tiny guest: machine code in 64-bit mode, and the memory and registers it starts with.
//!
//! Owns the picture of the guest's memory; makes no system call.
#![expect(unsafe_code, reason = "machine code is written in assembly and reached by its labels")]

use std::arch::global_asm;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// The guest reports by writing a stage's number to this port before it tries the stage.
pub(super) const PORT: u16 = 0x10;
/// What it writes when all went well.
pub(super) const PASSED: u8 = 0x7f;

/// What each stage tries, by number.
pub(super) fn stage(number: u8) -> &'static str {
    match number {
        0 => "64-bit mode",
        1 => "cmpxchg16b",
        2 => "xsave and xrstor",
        3 => "an int3 exception",
        4 => "10 million instructions in 100 ms",
        _ => "an unknown stage",
    }
}

/// Bytes of guest memory.
pub(super) const MEMORY: usize = 0x10000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const STACK_TOP: u64 = 0x8000;
const OPERAND: u64 = 0x8000;

// Each of the three instructions is one that an emulated KVM was seen to fail at under a stock kernel.
global_asm!(
    ".pushsection .rodata.banger_trial, \"a\"",
    ".balign 16",
    "banger_trial_start:",
    // 1: compare (1:2) with the operand, and put (3:4) there.
    "mov al, 1",
    "out 0x10, al",
    "mov edi, 0x8000",
    "mov eax, 2",
    "mov edx, 1",
    "mov ebx, 4",
    "mov ecx, 3",
    "lock cmpxchg16b [rdi]",
    "jnz 9f",
    "cmp qword ptr [rdi], 4",
    "jne 9f",
    "cmp qword ptr [rdi + 8], 3",
    "jne 9f",
    // 2: save xmm0, spoil it, get it back.
    "mov al, 2",
    "out 0x10, al",
    "xor ecx, ecx",
    "xor edx, edx",
    "mov eax, 3",
    "xsetbv",
    "mov ebx, 0x12345678",
    "movd xmm0, ebx",
    "mov edi, 0x9000",
    "xsave [rdi]",
    "pxor xmm0, xmm0",
    "xrstor [rdi]",
    "movd ebx, xmm0",
    "cmp ebx, 0x12345678",
    "jne 9f",
    // 3: a breakpoint; its handler leaves a trace.
    "mov al, 3",
    "out 0x10, al",
    "xor esi, esi",
    "int3",
    "cmp esi, 0x33",
    "jne 9f",
    // 4: enough instructions to tell hardware from an interpreter.
    "mov al, 4",
    "out 0x10, al",
    "mov ecx, 5000000",
    "2: dec ecx",
    "jnz 2b",
    "mov al, 0x7f",
    "out 0x10, al",
    "9: hlt",
    "banger_trial_int3:",
    "mov esi, 0x33",
    "iretq",
    "banger_trial_end:",
    ".popsection",
);

fn code() -> (&'static [u8], u64) {
    // SAFETY: the three labels delimit one block of read-only bytes, in this order, made by the
    // assembly above; only their addresses are taken, and the bytes are never written.
    unsafe {
        unsafe extern "C" {
            #[link_name = "banger_trial_start"]
            static START: u8;
            #[link_name = "banger_trial_int3"]
            static INT3: u8;
            #[link_name = "banger_trial_end"]
            static END: u8;
        }
        let start = &raw const START;
        let length = (&raw const END).offset_from_unsigned(start);
        let handler = (&raw const INT3).offset_from_unsigned(start);
        (std::slice::from_raw_parts(start, length), handler as u64)
    }
}

/// Fills the guest's memory (at least [`MEMORY`] bytes, all zero): page tables that map the first
/// 2 MiB to themselves, descriptor tables, code, operands.
pub(super) fn fill(memory: &mut [u8]) {
    let (code, int3) = code();
    let mut put = |address: u64, bytes: &[u8]| {
        let at = usize::try_from(address).unwrap_or(usize::MAX);
        if let Some(place) = memory.get_mut(at..at.saturating_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
    };
    // Present and writable; the directory's only entry is a 2 MiB page (SDM vol. 3, 4.5).
    put(PML4, &(PDPT | 0x3).to_le_bytes());
    put(PDPT, &(DIRECTORY | 0x3).to_le_bytes());
    put(DIRECTORY, &0x83_u64.to_le_bytes());
    // Flat 64-bit code and data segments (SDM vol. 3, 3.4.5).
    put(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    put(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    // An interrupt gate for vector 3 (SDM vol. 3, 6.14.1); the handler is below 64 KiB.
    let gate = ((CODE + int3) & 0xffff) | (8 << 16) | (0x8e00 << 32);
    put(IDT + 3 * 16, &gate.to_le_bytes());
    put(CODE, code);
    put(OPERAND, &2_u64.to_le_bytes());
    put(OPERAND + 8, &1_u64.to_le_bytes());
}

/// The general registers at the start.
pub(super) fn registers() -> kvm_regs {
    // Bit 1 of the flags is always set.
    kvm_regs { rip: CODE, rsp: STACK_TOP, rflags: 0x2, ..Default::default() }
}

/// Turns the vCPU's reset state into 64-bit mode with SSE and XSAVE on.
pub(super) fn enter_long_mode(sregs: &mut kvm_sregs) {
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 8, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: 16, type_: 0x3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 3 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    sregs.cr3 = PML4;
    // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
    // PE, MP, ET, NE, PG; and LME, LMA.
    sregs.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
    sregs.efer = 1 << 8 | 1 << 10;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_its_page_and_the_gate_points_at_its_handler() {
        let (code, int3) = code();
        assert!(code.len() > 64 && code.len() < 0x1000);
        // mov esi, 0x33
        let at = usize::try_from(int3).unwrap();
        assert_eq!(code[at..at + 5], [0xbe, 0x33, 0, 0, 0]);
        let mut memory = vec![0; MEMORY];
        fill(&mut memory);
        assert_eq!(memory[0x6000..0x6002], [0xb0, 1]);
        assert_eq!(u64::from(u16::from_le_bytes([memory[0x5030], memory[0x5031]])), 0x6000 + int3);
    }
}
