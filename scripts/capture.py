# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module machine_capture does, without Ansible: ``python3 scripts/capture.py office-pc.tar.gz``.

Needs Python 3.9 and the collection it lies in, nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
from plugins.module_utils._core.errors import PhyllomeError
from plugins.module_utils._iommu.capture import save


def main() -> int:
    """Exit status 0 when the archive was written and replays, 1 when not."""
    parser = argparse.ArgumentParser(description="Pack what the facts of a machine are computed from. Run it as root.")
    parser.add_argument("file", help="to write, a .tar.gz")
    parser.add_argument("--root", default="/", help="directory that holds sys, proc, boot, run and usr; default: /")
    options = parser.parse_args()
    try:
        done = save(options.root, options.file)
    except PhyllomeError as error:
        print(error, file=sys.stderr)
        return 1
    for warning in done["warnings"]:
        print(warning, file=sys.stderr)
    print(f"{done['dest']}: {done['files']} files, {done['bytes']} bytes")
    return 0 if done["replays"] else 1


if __name__ == "__main__":
    sys.exit(main())
