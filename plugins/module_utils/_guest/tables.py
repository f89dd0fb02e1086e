# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fields of a guest and of its devices. Argument spec, comparison, edit, diff and pending come from here.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

from .settle import settle
from .table_devices import (
    ALIAS,
    BOOT,
    CDROMS,
    DISKS,
    FILESYSTEMS,
    HOSTDEVS,
    INPUTS,
    KINDS,
    NETWORKS,
    TARGET,
    DeviceKind,
    device_id,
    free_name,
    host_device,
    unfit,
)
from .table_guest import DOMAIN

__all__ = [
    "ALIAS",
    "BOOT",
    "CDROMS",
    "DISKS",
    "DOMAIN",
    "FILESYSTEMS",
    "HOSTDEVS",
    "INPUTS",
    "KINDS",
    "NETWORKS",
    "TARGET",
    "DeviceKind",
    "device_id",
    "free_name",
    "host_device",
    "settle",
    "unfit",
]
