#!/bin/sh
# Builds the agent of each released protocol version from the commit that released it, and runs today's tests of the agent
# and of the link against it. A version whose commit is not in this clone's history is said and left out.
set -eu
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'git worktree remove --force "$folder/tree" 2>/dev/null || true; rm -rf "$folder"' EXIT
status=0
for version in protocol/released/*/; do
    version=$(basename "$version")
    # The last commit that touched what the version froze, before the next version came.
    commit=$(git log -1 --format=%H -- "protocol/released/$version" || true)
    if [ -z "$commit" ]; then
        echo "compat: version $version: its commit is not in this clone's history, left out" >&2
        continue
    fi
    git worktree remove --force "$folder/tree" 2>/dev/null || true
    git worktree add --quiet --detach "$folder/tree" "$commit"
    agent=$(CARGO_TARGET_DIR="$folder/target" "$folder/tree/guest-agent/build.sh")
    echo "compat: version $version: agent of $(git log -1 --format='%h %s' "$commit")" >&2
    GUESTLINE_AGENT=$agent cargo test --quiet --locked -p guestline-tests --test agent -- --test-threads 2 || status=1
done
exit $status
