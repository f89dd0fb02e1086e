#!/bin/sh
# Build the collection from what git knows or would add; with "install", install it too. What is installed
# already stays untouched: suites that run side by side ask for the same.
set -eu
cd "$(dirname "$0")/../.."
exec 9>>.cache/build.lock
flock 9
tree=.cache/tree-build/ansible_collections/phyllome/virt
python3 tests/tools/tree.py "$tree"
digest=$(cd "$tree" && find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
if [ "${1:-}" = install ] && [ "$(cat .cache/installed/digest 2>/dev/null)" = "$digest" ]; then
    echo "ANSIBLE_COLLECTIONS_PATH=$PWD/.cache/installed"
    exit
fi
mkdir -p .cache/dist
rm -f .cache/dist/phyllome-virt-*.tar.gz
.cache/venv/bin/ansible-galaxy collection build --force --output-path .cache/dist "$tree"
if [ "${1:-}" = install ]; then
    # ansible-galaxy looks there too, and would find the checkout.
    unset PYTHONPATH
    fresh=.cache/installed.$$
    trap 'rm -rf "$fresh"' EXIT
    # Offline: dependencies come from the environment, and no server is asked. Where collections are looked for
    # is said here, because one of this name that is found elsewhere would be left as it is.
    ANSIBLE_COLLECTIONS_PATH=$fresh .cache/venv/bin/ansible-galaxy collection install --offline \
        .cache/dist/phyllome-virt-*.tar.gz -p "$fresh"
    echo "$digest" >"$fresh/digest"
    rm -rf .cache/installed
    mv "$fresh" .cache/installed
    echo "ANSIBLE_COLLECTIONS_PATH=$PWD/.cache/installed"
fi
