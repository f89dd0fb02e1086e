# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cloud-init finds in a new guest: a CD with the label ``cidata``. Pure.

The format is https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing as t

from .._core.errors import PhyllomeError
from .media import CLOUD_INIT as ID
from .media import Medium

OPTIONS: dict[str, dict[str, t.Any]] = {
    "user_data": {"type": "raw"},
    "meta_data": {"type": "dict"},
    "network_config": {"type": "raw"},
    "keep_seed": {"type": "str", "choices": ["always", "until_done"]},
    "on_change": {"type": "str", "choices": ["report", "reseed"]},
}

_HEADERS = (
    # https://cloudinit.readthedocs.io/en/latest/explanation/format.html
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template: jinja",
    "Content-Type:",
    "MIME-Version:",
)
"""What user data begins with; cloud-init drops anything else without a word that anybody sees."""


@dataclasses.dataclass(frozen=True)
class Seed:
    """What is declared for cloud-init.

    Attributes:
        user_data: as cloud-init reads it.
        meta_data: declared keys.
        network_config: as cloud-init reads it; None leaves the network to the image.
        keep: whether the CD stays in its drive when cloud-init is done.
        reseed: whether another content makes a new instance of the guest.
    """

    user_data: str = dataclasses.field(repr=False)
    meta_data: t.Mapping[str, t.Any]
    network_config: str | None
    keep: bool
    reseed: bool


def accept(options: t.Mapping[str, t.Any]) -> Seed:
    """Check the options of ``cloud_init``.

    Raises:
        PhyllomeError: cloud-init would not take it. No message has any of the content.
    """
    meta = options.get("meta_data") or {}
    instance = meta.get("instance-id")
    if instance is not None and not (isinstance(instance, str) and instance.strip()):
        raise PhyllomeError(
            f"cloud_init.meta_data: instance-id {instance!r} is no name",
            "cloud-init compares it to know whether this is its first boot",
            "Leave it out: it is made from the guest's uuid and the content.",
        )
    network = options.get("network_config")
    if isinstance(network, t.Mapping) and "version" not in network and "version" not in (network.get("network") or {}):
        raise PhyllomeError(
            "cloud_init.network_config has no version",
            "cloud-init ignores a network configuration that does not say its version",
            "Begin with version: 2.",
        )
    return Seed(
        user_data=_user_data(options.get("user_data")),
        meta_data=meta,
        network_config=None if network is None else _text(network, "network_config", ""),
        keep=options.get("keep_seed") != "until_done",
        reseed=options.get("on_change") == "reseed",
    )


def medium(seed: Seed, name: str, uuid: str) -> Medium:
    """The CD for one guest.

    The instance id is the guest's uuid and a digest of the content, so it is stable, and a copy of the guest gets
    another. cloud-init does its work again when it sees a new one.

    Args:
        seed: what is declared.
        name: the guest's, which becomes its host name.
        uuid: the guest's.
    """
    declared = _json(seed.meta_data)
    content = f"{seed.user_data}\0{declared}\0{seed.network_config}"
    instance = f"{uuid}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    files = {
        "user-data": seed.user_data,
        "meta-data": _json({"instance-id": instance, "local-hostname": name, **seed.meta_data}),
    }
    if seed.network_config is not None:
        files["network-config"] = seed.network_config
    return Medium(ID, "cidata", {file: text.encode() for file, text in files.items()})


def _user_data(given: t.Any) -> str:
    text = _text({} if given is None else given, "user_data", "#cloud-config\n")
    if not text.startswith(_HEADERS):
        raise PhyllomeError(
            "cloud_init.user_data does not begin as user data does",
            "cloud-init ignores what has no header, for instance a #cloud-config without its first line",
            "Begin it with '#cloud-config' or '#!/bin/sh', or give a mapping instead of a text.",
        )
    return text


def _text(given: t.Any, option: str, header: str) -> str:
    if isinstance(given, t.Mapping):
        return header + _json(given)  # JSON is YAML
    if not isinstance(given, str):
        raise PhyllomeError(
            f"cloud_init.{option} is neither a text nor a mapping",
            f"it is a {type(given).__name__}",
            "Give what cloud-init shall read, or a mapping that is written for it.",
        )
    try:
        given.encode()
    except UnicodeEncodeError as exc:
        raise PhyllomeError(
            f"cloud_init.{option} is no text", f"position {exc.start} holds half a character", "Write it in UTF-8."
        ) from None
    return given


def _json(value: t.Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
