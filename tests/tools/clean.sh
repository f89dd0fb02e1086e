#!/bin/sh
# Remove what make made: first the labs (they may have mounts and machines below .cache), then files.
set -eu
cd "$(dirname "$0")/../.."
if [ -x tests/lab/lab ]; then
    tests/lab/lab clean || echo "clean: the lab could not remove everything of its own" >&2
fi
if grep -q " $PWD/.cache/" /proc/mounts; then
    echo "clean: something is still mounted below .cache; nothing was removed:" >&2
    grep " $PWD/.cache/" /proc/mounts >&2
    exit 1
fi
rm -rf .cache .ansible .mypy_cache .pytest_cache .ruff_cache .hypothesis collections tests/output
rm -f ./*.tar.gz changelogs/.plugin-cache.yaml
find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
