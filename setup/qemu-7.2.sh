#!/bin/sh
# Fetches Debian 12's own QEMU 7.2, the oldest that Guestline works with, and prints the path of its program on stdout;
# what is done goes to stderr. It is unpacked below the target folder, beside whatever QEMU the host has installed (apt
# has one or the other), and needs no root. What is there already and whole is only printed.
#
# usage: setup/qemu-7.2.sh
#
# Packages come through the host's own apt, which checks their signatures, from the mirror that the host uses. It is
# for hosts whose apt knows Debian 12 (bookworm): elsewhere the libraries that this QEMU needs are not to be had.
set -eu
cd "$(dirname "$0")/.."

suite=bookworm
version=7.2
# QEMU, what it loads at run time (TCG is such a module), its option roms, and the firmwares it looks for.
packages="qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu"
folder=${CARGO_TARGET_DIR:-$PWD/target}/qemu-$version
program=usr/bin/qemu-system-x86_64

say() { printf 'qemu-%s: %s\n' "$version" "$*" >&2; }
stop() {
    printf 'qemu-%s: error: %s\n' "$version" "$1" >&2
    shift
    for hint in "$@"; do printf '  hint: %s\n' "$hint" >&2; done
    exit 1
}

# Does the QEMU in folder $1 make machines? One without a device reads the module of TCG, but needs no guest. QEMU finds
# its files relative to its program: no -L is needed, and none of the installed QEMU's are used.
whole() {
    [ -e "$1/usr/share/seabios/bios-256k.bin" ] || return 1
    case "$("$1/$program" --version 2>/dev/null)" in
    "QEMU emulator version $version"*) ;;
    *) return 1 ;;
    esac
    echo quit | timeout 30 "$1/$program" -nodefaults -no-user-config -display none -machine q35 -accel tcg -S \
        -monitor stdio >/dev/null 2>&1
}

# apt-get as we are. Root's would otherwise download as a user who may not enter our folder.
apt() {
    if [ "$(id -u)" = 0 ]; then set -- -o APT::Sandbox::User=root "$@"; fi
    apt-get -q "$@"
}

# The packages into the current folder, of the suite named: apt's first choice may be the QEMU that is installed.
download() {
    set -- "$@" download
    for package in $packages; do set -- "$@" "$package/$suite"; done
    apt "$@" >apt.log 2>&1
}

case $folder in
/*) ;;
*) folder=$PWD/$folder ;;
esac
if whole "$folder"; then
    echo "$folder/$program"
    exit
fi

for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null 2>&1 || stop "this host has no \`$tool\`, by which QEMU $version is fetched"
done
# Sources may say `oldstable`, which only fetched lists resolve; where there are none, the host's own release tells.
release=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || true
apt-get indextargets --format '$(CODENAME)
$(RELEASE)' 'Created-By: Packages' | grep -qx "$suite" || [ "$release" = "$suite" ] ||
    stop "no package source of this host is Debian 12 ($suite), whose QEMU is $version"

# Unpacked beside and renamed: what has the right name is whole, whenever this is interrupted.
new=$folder.new.$$
trap 'rm -rf "$new"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
rm -rf "$new"
mkdir -p "$new/packages/lists/partial" "$new/root"

say "fetching $packages of Debian's $suite"
cd "$new/packages"
if ! download; then
    # The host's lists may be older than the mirror, or there may be none yet: lists of our own from the same sources.
    say "not with the package lists that this host has; fetching current ones"
    rm -f ./*.deb
    set -- -o "Dir::State::lists=$PWD/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    if ! apt "$@" update >update.log 2>&1 || ! download "$@"; then
        sed 's/^/  /' update.log apt.log >&2 || true
        stop "cannot fetch QEMU $version" "does the mirror answer? \`apt-get update\` as root tells"
    fi
fi
for package in ./*.deb; do dpkg-deb -x "$package" "$new/root"; done
cd - >/dev/null

missing=$(ldd "$new/root/$program" | awk '/not found/ { print $1 }' | sort -u | tr '\n' ' ')
[ -z "$missing" ] || stop "QEMU $version needs libraries that this host lacks: $missing" \
    "the packages that the installed QEMU of Debian 12 or its backports needs have them: setup/host.sh --tests"
whole "$new/root" || stop "the QEMU $version that was fetched makes no machine" \
    "$program --version, run from the packages named above, may say why"

# Another run of this script may have been quicker, and its result is as good.
if ! whole "$folder"; then
    rm -rf "$folder"
    mv -T "$new/root" "$folder" 2>/dev/null || whole "$folder" || stop "cannot rename \`$new/root\` to \`$folder\`"
fi
say "$("$folder/$program" --version | head -n 1)"
echo "$folder/$program"
