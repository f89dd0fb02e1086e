#!/bin/sh
# Bring a fresh Debian 12 (root, git and make at hand) to where every make target works.
# Run again: looks, finds everything there, and is done in a moment.
set -eu
cd "$(dirname "$0")/../.."

# --- Debian packages -------------------------------------------------------------------------
wanted=$(sed -e 's/#.*//' tests/tools/requirements.apt tests/lab/requirements.apt 2>/dev/null | xargs) || true
if command -v dpkg-query >/dev/null; then
    missing=
    for package in $wanted; do
        state=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) || state=
        case $state in
            ii*) ;;
            *) missing="$missing $package" ;;
        esac
    done
    if [ -n "$missing" ] && [ "$(id -u)" -eq 0 ]; then
        echo "setup: apt-get install$missing"
        export DEBIAN_FRONTEND=noninteractive
        mkdir -p .cache/logs
        # A run that was killed may have left packages half configured; a lock may be held by another apt.
        dpkg --configure -a
        # shellcheck disable=SC2086 # a list of package names
        if ! {
            apt-get -q -o DPkg::Lock::Timeout=300 update &&
                apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
        } >.cache/logs/apt.log 2>&1; then
            tail -n 30 .cache/logs/apt.log
            echo "setup: apt-get failed, see .cache/logs/apt.log" >&2
            exit 1
        fi
    elif [ -n "$missing" ]; then
        echo "setup: not root, so these packages stay missing and the labs may not run:$missing" >&2
    fi
else
    echo "setup: not Debian; the labs need the equivalents of: $wanted" >&2
fi

# --- Python environments ---------------------------------------------------------------------
exec python3 tests/tools/venvs.py
