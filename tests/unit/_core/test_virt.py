"""What libvirt's own settings say about waiting."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt
from ansible_collections.phyllome.virt.plugins.module_utils._migration import transfer


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        (None, (5, 5)),
        ("#keepalive_interval = 9\n", (5, 5)),
        ("keepalive_interval = 2\n  keepalive_count=3\n", (2, 3)),
        ("keepalive_interval = -1\nkeepalive_count = 0\n", (5, 5)),
    ],
)
def test_a_silent_host_gets_the_time_that_libvirt_gives_it(tmp_path, monkeypatch, conf, expected):
    path = tmp_path / "qemu.conf"
    if conf is not None:
        path.write_text(conf)
    monkeypatch.setattr(virt, "_QEMU_CONF", str(path))
    assert virt.patience() == expected
    interval, count = expected
    assert transfer.settle() == interval * (count + 1) + 15
