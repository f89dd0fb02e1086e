"""What libvirt's own settings say about waiting, and guests that go away."""

from __future__ import annotations

import contextlib
import types

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import converge
from ansible_collections.phyllome.virt.plugins.module_utils._migration import transfer
from ansible_collections.phyllome.virt.tests.unit._guest.fake import Library, LibvirtError


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


class Domain:
    """A guest that answers, or that libvirt says something else about."""

    def __init__(self, name, error=None):
        self._name, self._error = name, error

    def name(self):
        return self._name

    def UUIDString(self):
        return f"uuid-{self._name}"

    def XMLDesc(self, flags=0):
        if self._error:
            raise LibvirtError("no such guest", self._error)
        return f"<domain flags='{flags}'/>"

    state = listAllSnapshots = XMLDesc


def test_a_guest_that_goes_away_while_it_is_asked_is_left_out(monkeypatch):
    monkeypatch.setattr(virt, "libvirt", Library())
    there = types.SimpleNamespace(
        listAllDomains=lambda which: [Domain("gone", 42), Domain("web")] if which == 3 else []
    )
    assert [(one.name(), texts) for one, texts in virt.domains(there, 0, 2, which=3)] == [
        ("web", ["<domain flags='0'/>", "<domain flags='2'/>"])
    ]
    assert [*virt.domains(there)] == []
    broken = types.SimpleNamespace(listAllDomains=lambda which: [Domain("web", 1)])
    with pytest.raises(LibvirtError):
        list(virt.domains(broken))


def test_who_goes_away_is_no_guest_of_the_host_and_who_cannot_be_read_is_an_error(monkeypatch):
    monkeypatch.setattr(virt, "libvirt", Library())
    found = [Domain("web", 42)]
    there = types.SimpleNamespace(listAllDomains=lambda: found, lookupByName=lambda name: found[0])
    monkeypatch.setattr(virt, "session", lambda *dummy, **dummy_too: contextlib.nullcontext(there))
    for names in (None, ["web"]):
        assert converge.tell({"uri": "qemu:///system", "names": names}, False) == {"changed": False, "guests": []}
    found[0] = Domain("web", 1)
    with pytest.raises(PhyllomeError, match="Cannot read guest web"):
        converge.tell({"uri": "qemu:///system", "names": None}, False)
