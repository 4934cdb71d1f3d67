#!/bin/sh
# Builds a static program for guests, the agent unless another is named, and prints its path on stdout, what was chosen on stderr. The same sources and toolchain give the same bytes, wherever
# the checkout and Cargo's home are.
set -eu
cd "$(dirname "$0")/.."

program=${1:-guestline-agent}
musl=x86_64-unknown-linux-musl
gnu=x86_64-unknown-linux-gnu
home=${CARGO_HOME:-$HOME/.cargo}
flags="--remap-path-prefix=$PWD=/guestline --remap-path-prefix=$home=/cargo"

if [ -d "$(rustc --print sysroot)/lib/rustlib/$musl" ]; then
    target=$musl
    # Not position-independent: smaller.
    flags="$flags -C relocation-model=static"
    echo "agent: static with musl ($musl)" >&2
else
    target=$gnu
    flags="$flags -C target-feature=+crt-static"
    echo "agent: static with glibc ($gnu, crt-static); smaller with musl: rustup target add $musl" >&2
fi
# Both ways of setting flags are set, so that neither the caller's environment nor a configuration file adds to them.
unset CARGO_ENCODED_RUSTFLAGS
RUSTFLAGS=$flags cargo build --locked --quiet -p "$program" --profile agent --target "$target" >&2
echo "${CARGO_TARGET_DIR:-$PWD/target}/$target/agent/$program"
