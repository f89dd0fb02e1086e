#!/bin/sh
# Turn changelogs/fragments into the release notes of galaxy.yml's version. Modules and plugins whose
# version_added is that version are listed by themselves. Run again before the release: it is updated.
set -eu
cd "$(dirname "$0")/../.."
PATH="$PWD/.cache/venv/bin:$PATH" antsibull-changelog release --update-existing --reload-plugins
