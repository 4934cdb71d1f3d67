#!/bin/sh
# Finds the commit that broke something in a kernel: run it by `git bisect run` in a kernel tree.
#
#   git bisect start BAD GOOD
#   git bisect run .../bisect-kernel.sh 'dmesg | grep -q "what must be there"'
#
# A commit that does not build is skipped (125). A kernel that panics or hangs at boot is bad; a set-up that broke
# is skipped, not blamed.
set -eu
make -j"$(nproc)" bzImage || exit 125
exec guestline check --bisect --kernel arch/x86/boot/bzImage "$@"
