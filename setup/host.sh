#!/bin/sh
# Installs what building and running Guestline needs on this host: QEMU for x86-64 guests, a C linker, and
# (where rustup is) the Rust target for a static agent. What is there already is left alone.
#
# usage: setup/host.sh [--dry-run] [--tests]
#   --dry-run  only say what would be done
#   --tests    install what the tests use as well
set -eu

oldest_qemu=7.2
oldest_rust=1.88
dry_run=
tests=
for word in "$@"; do
    case "$word" in
    --dry-run) dry_run=yes ;;
    --tests) tests=yes ;;
    *)
        echo "usage: setup/host.sh [--dry-run] [--tests]" >&2
        exit 2
        ;;
    esac
done

say() { printf 'setup: %s\n' "$*"; }
stop() {
    printf 'setup: error: %s\n' "$1" >&2
    shift
    for hint in "$@"; do printf '  hint: %s\n' "$hint" >&2; done
    exit 1
}

# Is version $1 at least version $2?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

run() {
    say "$*"
    [ -n "$dry_run" ] || "$@"
}

# The same as root, by sudo where we are not.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        run "$@"
    else
        command -v sudo >/dev/null 2>&1 || stop "\`$*\` needs root, and there is no sudo" "run it as root, then try again"
        run sudo "$@"
    fi
}

qemu_version() { qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p'; }

# Is there a kernel that may be read, with its modules? A container has none, and a machine may have been given one from outside.
has_kernel() {
    for kernel in /boot/vmlinuz-*; do
        if [ -r "$kernel" ] && [ -d "/lib/modules/${kernel#/boot/vmlinuz-}" ]; then return 0; fi
    done
    return 1
}

# The package of a small kernel, on Debian and on Ubuntu.
kernel_package() {
    [ -r /etc/os-release ] && . /etc/os-release
    case "${ID:-}" in
    ubuntu) echo linux-image-virtual ;;
    *) echo linux-image-cloud-amd64 ;;
    esac
}

missing_packages() {
    version=$(qemu_version || true)
    if [ -z "$version" ]; then
        echo qemu-system-x86
    elif ! at_least "$version" "$oldest_qemu"; then
        echo qemu-system-x86
    fi
    # seabios comes with qemu-system-x86; the linker and the C library's headers with these two.
    command -v cc >/dev/null 2>&1 || echo gcc
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    command -v make >/dev/null 2>&1 || echo make
    # What images with a root of Debian's packages are made with.
    for pair in mmdebstrap:mmdebstrap mksquashfs:squashfs-tools; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair##*:}"
    done
    [ -n "$tests" ] || return 0
    # Command and package of what the tests use beside that: repositories, mirrors, terminals, name spaces, disks, signatures.
    for pair in qemu-img:qemu-utils minisign:minisign python3:python3 git:git gpg:gnupg gpgv:gpgv curl:curl xz:xz-utils lz4:lz4 script:bsdutils unshare:util-linux virt-builder:guestfs-tools; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair##*:}"
    done
    # Disks, ISO images and initial RAM file systems that boot by themselves.
    for pair in cpio:cpio mformat:mtools syslinux:syslinux grub-mkrescue:grub-common xorriso:xorriso; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || echo "${pair##*:}"
    done
    for pair in /sbin/sfdisk:fdisk /usr/lib/syslinux/mbr/mbr.bin:syslinux-common /usr/lib/grub/i386-pc:grub-pc-bin \
        /usr/lib/grub/x86_64-efi:grub-efi-amd64-bin /usr/share/OVMF:ovmf; do
        [ -e "${pair%%:*}" ] || echo "${pair##*:}"
    done
    # virt-builder's own machine has the host's kernel.
    has_kernel || kernel_package
    # What checks bills of materials is in a Python environment of its own (setup/sbom-validators.sh).
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    python3 -c 'import pytest' 2>/dev/null || echo python3-pytest
}

# Images are made from packages that apt's lists name.
list_packages() {
    command -v apt-cache >/dev/null 2>&1 || return 0
    [ -n "$(apt-cache show --no-all-versions busybox-static 2>/dev/null)" ] || as_root apt-get update
}

# Debian 12's QEMU is 7.2, and a qemu-utils from backports excludes it: both come from bookworm-backports, whose
# source is added beside the ones the host has, on the mirror the host uses.
add_backports() {
    apt-get indextargets --format '$(RELEASE)' | grep -qx bookworm-backports && return 0
    uri=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "bookworm" { print $2; exit }')
    [ -n "$uri" ] || return 1
    list=/etc/apt/sources.list.d/guestline-backports.sources
    [ ! -e "$list" ] || return 0
    say "adding $list: bookworm-backports of the mirror that this host uses"
    [ -z "$dry_run" ] || return 0
    text="Types: deb
URIs: $uri
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"
    if [ "$(id -u)" = 0 ]; then
        printf '%s\n' "$text" >"$list"
    else
        printf '%s\n' "$text" | sudo tee "$list" >/dev/null
    fi
}

install_packages() {
    [ -r /etc/os-release ] && . /etc/os-release
    case "${ID:-unknown} ${ID_LIKE:-}" in
    *debian* | *ubuntu*) ;;
    *) stop "this host is no Debian (\`${ID:-unknown}\`); packages wanted: $*" \
        "install QEMU for x86-64 ($oldest_qemu or newer), gcc and make with your package manager, then try again" ;;
    esac
    say "to be installed: $*"
    newer=
    case " $* " in
    *" qemu-system-x86 "* | *" qemu-utils "*)
        # What goes with a QEMU that stays comes from where that did.
        if [ "${VERSION_CODENAME:-}" = bookworm ] && ! [ "$(qemu_version | cut -d. -f1)" = 7 ]; then
            [ -n "$(ls /var/lib/apt/lists 2>/dev/null | grep Packages)" ] || as_root apt-get update
            if add_backports; then
                # A qemu-utils of the other suite would exclude this QEMU: both move together.
                for package in qemu-system-x86 qemu-utils; do
                    case " $* " in *" $package "*) newer="$newer $package" ;; *)
                        if dpkg -s "$package" >/dev/null 2>&1; then newer="$newer $package"; fi ;;
                    esac
                done
            fi
        fi
        ;;
    esac
    as_root apt-get update
    # From backports nothing but QEMU: a kernel from there is another one than this suite's.
    rest=
    for package in "$@"; do
        case " $newer " in *" $package "*) ;; *) rest="$rest $package" ;; esac
    done
    # shellcheck disable=SC2086 # lists of words
    {
        [ -z "$newer" ] || install_now -t bookworm-backports $newer
        [ -z "$rest" ] || install_now $rest
    }
}

install_now() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

check_rust() {
    command -v cargo >/dev/null 2>&1 || stop "there is no cargo" \
        "get Rust $oldest_rust or newer from https://rustup.rs (or your distribution), then try again"
    have=$(rustc --version | awk '{ print $2 }')
    at_least "$have" "$oldest_rust" || stop "rustc $have is too old, $oldest_rust is the oldest that works" "rustup update stable"
}

# The static agent is smallest with musl. Not having the target is no error: the agent is then built with glibc.
add_musl_target() {
    target=x86_64-unknown-linux-musl
    command -v rustup >/dev/null 2>&1 || return 0
    rustup target list --installed 2>/dev/null | grep -qx "$target" && return 0
    run rustup target add "$target" || say "no $target here: the agent will be linked with glibc, statically"
}

check_rust
wanted=$(missing_packages)
if [ -n "$wanted" ]; then
    # shellcheck disable=SC2086 # a list of words
    install_packages $wanted
fi
list_packages
add_musl_target
if [ -z "$dry_run" ]; then
    say "QEMU $(qemu_version), rustc $(rustc --version | awk '{ print $2 }'): ready"
fi
