# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports, certificates and versions between two hosts."""

from __future__ import annotations

import errno
import pathlib
import socket
import subprocess

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import read_way


def answers(monkeypatch, answer):
    def connect(where, timeout):
        if isinstance(answer, Exception):
            raise answer
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)


def test_a_host_that_refuses_has_heard_the_knock():
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    assert read_way.knock("127.0.0.1", taken.getsockname()[1:]) == ""
    taken.listen()
    assert read_way.knock("127.0.0.1", taken.getsockname()[1:]) == ""
    taken.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (TimeoutError(), "port 49152 of beta does not answer, as behind a firewall"),
        (TimeoutError(errno.ETIMEDOUT, "late"), "port 49152 of beta does not answer, as behind a firewall"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "port 49152 of beta: No route to host"),
        (ConnectionRefusedError(), ""),
    ],
)
def test_what_the_network_answers(monkeypatch, answer, said):
    answers(monkeypatch, answer)
    assert read_way.knock("beta") == said


def openssl(folder: pathlib.Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(folder, "req", "-x509", *made, "-keyout", "ca.key", "-out", "ca-cert.pem", "-days", "1", "-subj", "/CN=ca")
    openssl(folder, "req", *made, "-keyout", "client-key.pem", "-out", "asked.pem", "-subj", "/CN=alpha")
    return folder


def signed(folder, days):
    openssl(
        folder, "x509", "-req", "-in", "asked.pem", "-CA", "ca-cert.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", days, "-out", "client-cert.pem",
    )  # fmt: skip
    return str(folder)


def test_certificates_that_are_right(certificates):
    assert read_way.check(signed(certificates, "1")) == ""


def test_certificates_that_are_expired(certificates):
    assert read_way.check(signed(certificates, "-1")).endswith("client-cert.pem: certificate has expired")


def test_certificates_of_somebody_else(certificates, tmp_path):
    signed(certificates, "1")
    for name in ("client-cert.pem", "client-key.pem"):
        (tmp_path / name).write_bytes((certificates / name).read_bytes())
    (tmp_path / "ca-cert.pem").write_bytes((tmp_path / "client-cert.pem").read_bytes())
    assert "client-cert.pem: unable to get" in read_way.check(str(tmp_path))


def test_certificates_that_are_missing(tmp_path):
    (tmp_path / "ca-cert.pem").write_text("")
    assert read_way.check(str(tmp_path)) == f"{tmp_path} has no client-cert.pem, client-key.pem"


def test_certificates_that_nobody_can_judge(certificates, monkeypatch):
    def run(argv):
        raise PhyllomeError("openssl is not installed", "", "") from FileNotFoundError()

    monkeypatch.setattr(read_way.program, "run", run)
    assert read_way.check(signed(certificates, "1")) is None


def test_the_folder_is_what_the_settings_say(tmp_path, monkeypatch):
    settings = tmp_path / "qemu.conf"
    monkeypatch.setattr(read_way, "_QEMU_CONF", str(settings))
    assert read_way.folder() in ("/etc/pki/qemu", "/etc/pki/libvirt-migrate")
    settings.write_text(f'#migrate_tls_x509_cert_dir = "/no"\nmigrate_tls_x509_cert_dir = "{tmp_path}"\n')
    assert read_way.folder() == str(tmp_path)


def test_versions_as_people_write_them():
    assert [read_way.shown(version) for version in (7002019, 10001000)] == ["7.2.19", "10.1.0"]
