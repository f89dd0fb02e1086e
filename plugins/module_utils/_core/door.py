# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The door between Ansible and the rooms: the only place that knows AnsibleModule.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from .errors import PhyllomeError

Body = t.Callable[[dict[str, t.Any], bool], dict[str, t.Any]]


def serve(argument_spec: dict[str, t.Any], body: Body, **constraints: t.Any) -> t.NoReturn:
    """Run a module: parameters in, result out, errors said once.

    Args:
        argument_spec: as AnsibleModule takes it.
        body: called with the parameters and whether this is check mode; returns the result.
            The key ``warnings`` of the result is shown to the user as warnings.
        constraints: ``mutually_exclusive`` and the like, as AnsibleModule takes them.
    """
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True, **constraints)
    try:
        result = body(module.params, module.check_mode)
    except PhyllomeError as exc:
        facts = dict(exc.facts)
        for warning in facts.pop("warnings", ()):
            module.warn(warning)
        module.fail_json(msg=str(exc), **facts)
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**result)
