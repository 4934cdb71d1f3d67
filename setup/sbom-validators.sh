#!/bin/sh
# Installs what checks bills of materials (CycloneDX, SPDX) into a Python environment of its own below the target folder, and
# prints the path of its Python on stdout; what is done goes to stderr. It needs no root. What is there already is only
# printed.
#
# usage: setup/sbom-validators.sh
#
# The packages come from wherever the host's pip takes them.
set -eu
cd "$(dirname "$0")/.."

packages="cyclonedx-python-lib[json-validation]==11.12.0 spdx-tools==0.8.5"
folder=${CARGO_TARGET_DIR:-$PWD/target}/sbom-validators
case $folder in
/*) ;;
*) folder=$PWD/$folder ;;
esac

say() { printf 'sbom-validators: %s\n' "$*" >&2; }
stop() {
    printf 'sbom-validators: error: %s\n' "$1" >&2
    shift
    for hint in "$@"; do printf '  hint: %s\n' "$hint" >&2; done
    exit 1
}
# Written when all is there: whatever interrupts this, what has it is whole, and of these versions.
whole() { [ "$(cat "$folder/installed" 2>/dev/null)" = "$packages" ] && "$folder/bin/python" -c 'import cyclonedx, spdx_tools'; }

if ! whole; then
    command -v python3 >/dev/null 2>&1 || stop "this host has no python3" "setup/host.sh --tests installs it"
    say "installing $packages"
    rm -rf "$folder"
    mkdir -p "$(dirname "$folder")"
    python3 -m venv "$folder" >&2 || stop "python3 cannot make an environment" "setup/host.sh --tests installs python3-venv"
    # shellcheck disable=SC2086 # a list of words
    "$folder/bin/pip" -q --disable-pip-version-check install $packages >&2 || stop "pip cannot install them"
    echo "$packages" >"$folder/installed"
    whole || stop "what was installed cannot be used"
fi
echo "$folder/bin/python"
