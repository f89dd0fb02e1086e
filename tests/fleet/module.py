"""Runs on a host: one module of the collection as Ansible runs it, without Ansible around it.

Usage: python3 module.py NAME [--check] < ARGUMENTS

What lies beside it is Ansible's part of a module, and the collection as it is installed.
"""

from __future__ import annotations

import json
import runpy
import sys

from ansible.module_utils import basic

name, *flags = sys.argv[1:]
assert set(flags) <= {"--check"}, flags
given = {**json.load(sys.stdin), "_ansible_check_mode": "--check" in flags, "_ansible_remote_tmp": "/tmp"}
basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": given}).encode()
basic._ANSIBLE_PROFILE = "legacy"
runpy.run_module(f"ansible_collections.phyllome.virt.plugins.modules.{name}", run_name="__main__")
