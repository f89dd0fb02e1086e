# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a program that is itself the interface (qemu-img, systemctl): argument list, timeout, checked status.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import subprocess
import typing as t

from .errors import PhyllomeError


def run(
    argv: t.Sequence[str],
    timeout: float = 60,
    remedy: str = "See the message of the program.",
    language: t.Mapping[str, str] | None = None,
    stdin: str = "",
) -> str:
    """Standard output of a program.

    Args:
        argv: program and arguments; no shell is involved.
        timeout: seconds.
        remedy: what to do when it fails.
        language: variables of the environment such as ``LANG``, for a program whose files people read; C.UTF-8 without.
        stdin: what it reads from its standard input.

    Raises:
        PhyllomeError: it is missing, fails, or does not end in time.
    """
    try:
        # AnsibleModule.run_command is the door's, and rooms do not know it.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            list(argv),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
            encoding="utf-8",
            errors="replace",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(language or {"LC_ALL": "C.UTF-8"})},
        )
    except FileNotFoundError as exc:
        raise PhyllomeError(
            f"{argv[0]} is not installed", str(exc), "The role phyllome.virt.hypervisor installs it."
        ) from exc
    except OSError as exc:
        raise PhyllomeError(f"{argv[0]} cannot be run", exc.strerror or str(exc), remedy) from exc
    except subprocess.TimeoutExpired as exc:
        raise PhyllomeError(f"{' '.join(argv)} did not end within {timeout} s", "timeout", remedy) from exc
    if done.returncode != 0:
        raise PhyllomeError(
            f"{' '.join(argv)} failed with status {done.returncode}",
            done.stderr.strip() or "it printed no error",
            remedy,
        )
    return done.stdout
