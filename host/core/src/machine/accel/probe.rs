//! Does `/dev/kvm` run guest code? Three tiny guests tell, each asking more than the one before.
//!
//! | stage | the guest | fooled by |
//! |---|---|---|
//! | real | 16-bit: `out; hlt` | hosts whose KVM emulates |
//! | protected | switches to 32-bit protected mode, `out; hlt` | hosts without paging in guests |
//! | long | 64-bit with paging: walks 8 MiB, counts 4 million loops, `out; hlt` | |
//!
//! The last one never comes back where nested paging is broken, and takes a thousand times too
//! long where KVM only emulates. [`main`] runs in a child under a limit on CPU time
//! (`RLIMIT_CPU`, setrlimit(2)), and [`super`] kills it when its wall time is over. Machine
//! modes and tables: Intel SDM volume 3, chapters 4 (paging) and 10 (mode switching).

use crate::sys::{Page, lend_memory};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use nix::sys::resource::{Resource, setrlimit};
use std::io::Write as _;

/// Guest memory: 16 MiB at physical 0. Code at 64 KiB, page tables at 128 KiB.
const MEMORY: usize = 16 << 20;
const CODE: usize = 0x1_0000;
const TABLES: usize = 0x2_0000;

/// The port that a finished guest writes to, and what it writes.
const PORT: u16 = 0x3f8;
const DONE: u8 = 0x5a;

/// CPU seconds of the child, the least `setrlimit` can say.
const CPU_LIMIT: u64 = 1;

type Stage = fn() -> Result<(), String>;

const STAGES: [(&str, Stage); 3] =
    [("real", real_mode), ("protected", protected_mode), ("long", long_mode)];

/// The child: prints each stage as it is begun and when it is done.
pub fn main() {
    let _ = setrlimit(Resource::RLIMIT_CPU, CPU_LIMIT, CPU_LIMIT);
    let mut out = std::io::stdout();
    for (name, stage) in STAGES {
        let _ = writeln!(out, "begin {name}").and_then(|()| out.flush());
        if let Err(error) = stage() {
            let _ = writeln!(out, "error {error}");
            return;
        }
        let _ = writeln!(out, "done {name}").and_then(|()| out.flush());
    }
}

/// What the child's words mean.
pub(super) fn verdict(said: &str) -> Result<(), String> {
    let last = |word: &str| {
        said.lines().rev().find_map(|line| line.strip_prefix(word)).unwrap_or_default().trim()
    };
    if last("done") == "long" {
        return Ok(());
    }
    let code = match last("begin") {
        "long" => "64-bit guest code",
        "protected" => "32-bit guest code",
        "real" => "16-bit guest code",
        _ => return Err("/dev/kvm opens, but the probe says nothing about it".to_owned()),
    };
    match last("error") {
        "" => Err(format!("/dev/kvm opens, but {code} does not run on it")),
        error => Err(format!("/dev/kvm opens, but {code} does not run on it: {error}")),
    }
}

/// `mov dx, PORT; mov al, DONE; out dx, al; hlt` in 16-bit code.
const OUT_16: &[u8] = &[0xba, 0xf8, 0x03, 0xb0, DONE, 0xee, 0xf4];

/// The same in 32-bit and 64-bit code, where `mov edx` takes four bytes.
const OUT_32: &[u8] = &[0xba, 0xf8, 0x03, 0, 0, 0xb0, DONE, 0xee, 0xf4];

fn real_mode() -> Result<(), String> {
    let guest = Guest::new(OUT_16)?;
    guest.run(
        |sregs| {
            sregs.cs.base = CODE as u64;
            sregs.cs.selector = (CODE >> 4) as u16;
        },
        0,
    )
}

fn protected_mode() -> Result<(), String> {
    // `mov eax, cr0; or al, 1; mov cr0, eax`, then a far jump over a flat code segment that the
    // GDT behind the code describes.
    let gdt = CODE + 0x100;
    let target = (CODE + 0x40) as u32;
    let mut code = vec![0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea];
    code.extend(target.to_le_bytes());
    code.extend(8u16.to_le_bytes());
    code.resize(0x40, 0xf4);
    code.extend(OUT_32);
    code.resize(0x108, 0);
    code.extend(0x00cf_9b00_0000_ffffu64.to_le_bytes());
    let guest = Guest::new(&code)?;
    guest.run(
        |sregs| {
            sregs.cs.base = CODE as u64;
            sregs.cs.selector = (CODE >> 4) as u16;
            sregs.gdt.base = gdt as u64;
            sregs.gdt.limit = 15;
        },
        0,
    )
}

fn long_mode() -> Result<(), String> {
    let mut code = Vec::new();
    // mov rdi, 0x800000; next: mov [rdi], rdi; add rdi, 4096; cmp rdi, 0x1000000; jb next
    code.extend([0x48, 0xc7, 0xc7, 0, 0, 0x80, 0]);
    code.extend([0x48, 0x89, 0x3f]);
    code.extend([0x48, 0x81, 0xc7, 0, 0x10, 0, 0]);
    code.extend([0x48, 0x81, 0xff, 0, 0, 0, 1]);
    code.extend([0x72, 0xed]);
    // mov ecx, 4000000; loop: dec ecx; jnz loop
    code.extend([0xb9]);
    code.extend(4_000_000u32.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]);
    code.extend(OUT_32);
    let mut guest = Guest::new(&code)?;
    // One PML4 entry, one PDPT entry, eight PD entries of 2 MiB each: present, writable.
    let entry = |address: usize| (address as u64 | 3).to_le_bytes();
    guest.write(TABLES, &entry(TABLES + 0x1000));
    guest.write(TABLES + 0x1000, &entry(TABLES + 0x2000));
    for index in 0..MEMORY >> 21 {
        guest.write(TABLES + 0x2000 + index * 8, &entry(index << 21 | 0x80));
    }
    guest.run(
        |sregs| {
            sregs.cr3 = TABLES as u64;
            sregs.cr4 |= 1 << 5; // PAE
            sregs.cr0 |= 1 << 31 | 1 << 5 | 1; // PG, NE, PE
            sregs.efer |= 1 << 10 | 1 << 8; // LMA, LME
            sregs.cs.base = 0;
            sregs.cs.limit = 0xffff_ffff;
            sregs.cs.selector = 8;
            sregs.cs.type_ = 11;
            sregs.cs.present = 1;
            sregs.cs.s = 1;
            sregs.cs.l = 1;
            sregs.cs.db = 0;
            sregs.cs.g = 1;
            for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
                data.base = 0;
                data.limit = 0xffff_ffff;
                data.selector = 16;
                data.type_ = 3;
                data.present = 1;
                data.s = 1;
                data.db = 1;
                data.g = 1;
            }
        },
        CODE as u64,
    )
}

/// A virtual machine with one vCPU and [`MEMORY`] bytes, code at [`CODE`].
struct Guest {
    // In this order: the machine goes before the memory that it was lent.
    vm: VmFd,
    memory: Vec<Page>,
}

impl Guest {
    fn new(code: &[u8]) -> Result<Self, String> {
        let kvm = Kvm::new().map_err(|error| format!("opening it gives {error}"))?;
        let vm = kvm.create_vm().map_err(|error| format!("KVM_CREATE_VM gives {error}"))?;
        let memory = vec![Page::default(); MEMORY / size_of::<Page>()];
        let mut guest = Self { vm, memory };
        guest.write(CODE, code);
        lend_memory(&guest.vm, &mut guest.memory)
            .map_err(|error| format!("KVM_SET_USER_MEMORY_REGION gives {error}"))?;
        Ok(guest)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let page = &mut self.memory[at / size_of::<Page>()].0;
        let start = at % size_of::<Page>();
        page[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Runs until the guest has written [`DONE`] to [`PORT`].
    fn run(
        &self,
        prepare: impl FnOnce(&mut kvm_bindings::kvm_sregs),
        rip: u64,
    ) -> Result<(), String> {
        let said = |what: &str, error| format!("{what} gives {error}");
        let mut vcpu = self.vm.create_vcpu(0).map_err(|error| said("KVM_CREATE_VCPU", error))?;
        let mut sregs = vcpu.get_sregs().map_err(|error| said("KVM_GET_SREGS", error))?;
        prepare(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(|error| said("KVM_SET_SREGS", error))?;
        let mut regs = vcpu.get_regs().map_err(|error| said("KVM_GET_REGS", error))?;
        regs.rip = rip;
        regs.rflags = 2;
        vcpu.set_regs(&regs).map_err(|error| said("KVM_SET_REGS", error))?;
        match vcpu.run().map_err(|error| said("KVM_RUN", error))? {
            VcpuExit::IoOut(PORT, [DONE]) => Ok(()),
            other => Err(format!("the guest stopped with {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn only_a_finished_long_mode_counts() {
        let short = "begin real\ndone real\nbegin protected\ndone protected\n";
        assert_eq!(verdict(&format!("{short}begin long\ndone long\n")), Ok(()));
        let stuck = verdict(&format!("{short}begin long\n")).unwrap_err();
        assert_eq!(stuck, "/dev/kvm opens, but 64-bit guest code does not run on it");
        let refused = verdict("begin real\nerror KVM_CREATE_VM gives ENOMEM\n").unwrap_err();
        assert!(
            refused.ends_with("16-bit guest code does not run on it: KVM_CREATE_VM gives ENOMEM")
        );
        assert!(verdict("").is_err());
    }
}
