#!/bin/sh
# Put Python files in shape: all of them, or those named.
set -eu
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- plugins tests
.cache/venv/bin/ruff check --quiet --fix-only "$@"
exec .cache/venv/bin/ruff format "$@"
