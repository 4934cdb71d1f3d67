#!/bin/sh
# Builds a static program for guests and prints its path on stdout, what was chosen on stderr. The same sources and
# toolchain give the same bytes, wherever the checkout and Cargo's home are.
#
#   build.sh [--arch x86_64|aarch64] [--libc musl|gnu] [PROGRAM]    PROGRAM: guestline-agent unless another is named
#
# With musl where its Rust target is installed (rustup target add ARCH-unknown-linux-musl), else, on x86_64, with glibc.
# aarch64 needs that target and no other tool.
set -eu
cd "$(dirname "$0")/.."

arch=x86_64
libc=musl
while [ $# -ge 2 ]; do
    case $1 in
        --arch) arch=$2 ;;
        --libc) libc=$2 ;;
        *) break ;;
    esac
    shift 2
done
program=${1:-guestline-agent}
musl=$arch-unknown-linux-musl
gnu=$arch-unknown-linux-gnu
home=${CARGO_HOME:-$HOME/.cargo}
flags="--remap-path-prefix=$PWD=/guestline --remap-path-prefix=$home=/cargo"

if [ "$libc" = musl ] && [ -d "$(rustc --print sysroot)/lib/rustlib/$musl" ]; then
    target=$musl
    # Not position-independent: smaller.
    flags="$flags -C relocation-model=static"
    # The linker that comes with Rust: there is none of the system's for another architecture.
    [ "$arch" = x86_64 ] ||
        flags="$flags -C linker=rust-lld -C linker-flavor=ld.lld -C link-self-contained=yes"
    echo "agent: static with musl ($musl)" >&2
elif [ "$arch" = x86_64 ]; then
    target=$gnu
    flags="$flags -C target-feature=+crt-static"
    echo "agent: static with glibc ($gnu, crt-static); smaller with musl: rustup target add $musl" >&2
else
    echo "agent: the Rust target is not installed: rustup target add $musl" >&2
    exit 1
fi
# Both ways of setting flags are set, so that neither the caller's environment nor a configuration file adds to them.
unset CARGO_ENCODED_RUSTFLAGS
RUSTFLAGS=$flags cargo build --locked --quiet -p "$program" --profile agent --target "$target" >&2
echo "${CARGO_TARGET_DIR:-$PWD/target}/$target/agent/$program"
