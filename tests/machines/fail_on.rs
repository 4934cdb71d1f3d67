//! `--fail-on`: what the guest's kernel did while a test passed.

use crate::import::{run, tiny};
use guestline_tests::Guestline;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

#[test]
fn a_kernel_that_is_tainted_meanwhile_fails_the_test() {
    let guestline = Guestline::new();
    let taint = "echo 64 > /proc/sys/kernel/tainted";
    let check =
        |options: &[&str], line: &str| guestline.run(&[&["check"], options, &[line]].concat());
    check(&[], taint).assert_verdict(0, "passed");
    let ran = check(&["--fail-on", "taint"], taint);
    ran.assert_verdict(1, "the kernel was tainted: U (a program asked for it)");
    assert!(ran.stderr.contains("guestline check --fail-on taint "), "{}", ran.stderr);
    // Another bit than those of warnings and oopses.
    check(&["--fail-on", "warn,oops"], taint).assert_verdict(0, "passed");
    check(&["--fail-on", "taint"], "true").assert_verdict(0, "passed");
    // What a warning leaves, should its words be lost.
    let warned = "echo 512 > /proc/sys/kernel/tainted";
    check(&["--fail-on", "warn"], warned).assert_verdict(1, "the kernel warned");
    // A test that fails by itself, or is skipped, keeps its own reason.
    let ran = check(&["--fail-on=taint"], "echo 64 > /proc/sys/kernel/tainted; exit 3");
    ran.assert_verdict(1, "status 3");
    let ran =
        check(&["--fail-on=taint", "--allow-none"], "echo 64 > /proc/sys/kernel/tainted; exit 77");
    ran.assert_verdict(0, "skipped");
    assert_eq!(check(&["--fail-on=panic"], "true").status, 2);
    guestline.assert_nothing_left();
}

#[test]
fn what_a_program_writes_to_the_log_is_not_the_kernels() {
    let guestline = Guestline::new();
    let line = "for level in 0 1 4; do echo \"<$level>WARNING: CPU: 0 PID: 1 at x.c:1\" > /dev/kmsg; \
                echo \"<$level>BUG: kernel NULL pointer dereference [#1]\" > /dev/kmsg; done; \
                dmesg | grep -q NULL";
    guestline.run(&["check", "--fail-on", "warn,taint,oops", line]).assert_verdict(0, "passed");
    guestline.assert_nothing_left();
}

/// A module of tiny's kernel, for what another one has to have of that kernel: version, digests of symbols, and where its
/// first function stands in `struct module`.
const LIKE: &str = "dummy";

/// A module for tiny's kernel whose first function is `code`, beside which other sections may stand.
fn module(below: &Path, name: &str, code: &str) {
    let find = format!(
        "cpio -id --quiet '*/{LIKE}.ko' && mv lib/modules/*/kernel/drivers/net/{LIKE}.ko ."
    );
    let initrd = File::open(tiny().join("initrd.cpio")).unwrap();
    run(Command::new("sh").args(["-c", &find]).current_dir(below).stdin(initrd));
    let like = below.join(format!("{LIKE}.ko"));
    let dump = ["--dump-section", "__versions=versions", "--dump-section", ".modinfo=info"];
    run(Command::new("objcopy").args(dump).arg(&like).arg("rest.ko").current_dir(below));
    let tables = run(Command::new("readelf").arg("-SrW").arg(&like));
    let tables = String::from_utf8(tables).unwrap();
    let this = ".gnu.linkonce.this_module";
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let section = tables.lines().find(|line| line.contains(&format!(" {this} "))).unwrap();
    let section = words(section.split_once(this).unwrap().1);
    let (_, placed) = tables.split_once(&format!("'.rela{this}'")).unwrap();
    let begins = placed.lines().find(|line| line.contains(" init_module + 0")).unwrap();
    let info = fs::read(below.join("info")).unwrap();
    let mut info = info.split(|&byte| byte == 0).filter_map(|field| str::from_utf8(field).ok());
    let version = info.find(|field| field.starts_with("vermagic=")).unwrap();
    // The name stands behind a state and a list (Linux `include/linux/module.h`, `struct module`).
    let text = format!(
        ".globl init_module\n.text\ninit_module: endbr64\n{code}\nxorl %eax, %eax\nret\n\
         .section .modinfo, \"a\"\n.asciz \"license=GPL\"\n.asciz \"name={name}\"\n\
         .asciz \"retpoline=Y\"\n.asciz \"{version}\"\n\
         .section __versions, \"a\"\n.incbin \"versions\"\n\
         .section {this}, \"aw\"\n.align 64\n1: .skip 24\n.asciz \"{name}\"\n\
         .org 1b + 0x{init}\n.quad init_module\n.org 1b + 0x{size}\n",
        init = words(begins)[0],
        size = section[3],
    );
    let source = below.join("source.s");
    fs::write(&source, text).unwrap();
    run(Command::new("as").arg("-o").arg(format!("{name}.ko")).arg(source).current_dir(below));
}

/// What Linux's WARN() comes down to on x86 (`arch/x86/include/asm/bug.h`): an instruction that is none, and a table that
/// says what is meant.
const WARNS: &str = "2: ud2\n.pushsection __bug_table, \"aw\"\n.long 2b - .\n.long 4f - .\n.word 12\n\
    .word 1 | 9 << 8\n.popsection\n.pushsection .rodata.str1.1, \"aMS\", @progbits, 1\n\
    4: .asciz \"made/here.c\"\n.popsection";

#[test]
fn a_kernel_that_warns_or_oopses_fails_the_test() {
    let guestline = Guestline::new();
    let folder = guestline.home().join("modules");
    fs::create_dir(&folder).unwrap();
    module(&folder, "warns", WARNS);
    module(&folder, "oopses", "ud2");
    let check = |fail_on: &str, module: &str| {
        let line = format!("insmod /mnt/{module}.ko; dmesg | grep -c 'cut here'; true");
        let with = format!("modules/{module}.ko");
        guestline.run(&["check", "--fail-on", fail_on, "--with", &with, &line])
    };
    // It warned, and went on.
    let ran = check("oops", "warns");
    ran.assert_verdict(0, "passed");
    assert_eq!(ran.stdout(), "1\n", "{}", ran.stderr);
    let ran = check("warn", "warns");
    ran.assert_verdict(1, "the kernel warned");
    assert!(ran.stderr.contains("WARNING: CPU: 0 PID: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("at made/here.c:12 "), "{}", ran.stderr);
    // An oops is worse than a warning.
    check("warn", "oopses").assert_verdict(1, "the kernel oopsed");
    let ran = check("oops", "oopses");
    ran.assert_verdict(1, "oops");
    assert!(ran.stderr.contains("invalid opcode: 0000 [#1]"), "{}", ran.stderr);
    // Both are modules that nobody signed.
    check("taint", "warns").assert_verdict(1, "an unsigned module was loaded");
    guestline.assert_nothing_left();
}
