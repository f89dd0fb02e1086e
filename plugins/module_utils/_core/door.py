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


HIDDEN = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
"""What Ansible itself says in the place of a secret."""


def serve(
    argument_spec: dict[str, t.Any], body: Body, secret: t.Collection[str] = (), **constraints: t.Any
) -> t.NoReturn:
    """Run a module: parameters in, result out, errors said once.

    Args:
        argument_spec: as AnsibleModule takes it.
        body: called with the parameters and whether this is check mode; returns the result.
            The key ``warnings`` of the result is shown to the user as warnings.
        secret: names of options that are never shown, wherever they stand: also in the entries of a list that
            Ansible does not know the options of. ``no_log`` alone is not enough for them: it hides every word that
            occurs in a mapping, also where it means something else, and an option that it does not know not at all.
        constraints: ``mutually_exclusive`` and the like, as AnsibleModule takes them.
    """
    spec = {
        # no_log keeps the whole option out of the journal of the host
        name: {**option, "no_log": True} if secret and _may_hold(name, option, secret) else option
        for name, option in argument_spec.items()
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True, **constraints)
    shown: dict[str, t.Any] = {}
    if secret:
        module.no_log_values.clear()
        module.no_log_values.update(_texts(module.params, secret))
        shown = {"invocation": {"module_args": _without(module.params, secret)}}
    try:
        result = body(module.params, module.check_mode)
    except PhyllomeError as exc:
        facts = dict(exc.facts)
        for warning in facts.pop("warnings", ()):
            module.warn(warning)
        module.fail_json(msg=str(exc), **shown, **facts)
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**shown, **result)


def _may_hold(name: str, option: t.Mapping[str, t.Any], secret: t.Collection[str]) -> bool:
    """Whether a secret may stand in an option: it is one, has one, or has entries that nobody describes."""
    if name in secret:
        return True
    if "options" in option:
        return any(_may_hold(inner, each, secret) for inner, each in option["options"].items())
    return option.get("type") in ("dict", "raw") or option.get("elements") in ("dict", "raw")


def _without(value: t.Any, secret: t.Collection[str]) -> t.Any:
    """The same with every secret option hidden."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if name in secret and each not in (None, "") else _without(each, secret)
            for name, each in value.items()
        }
    return [_without(each, secret) for each in value] if isinstance(value, list) else value


def _texts(value: t.Any, secret: t.Collection[str]) -> t.Iterator[str]:
    """Secrets that are one text: these are hidden in messages as well."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name in secret and isinstance(each, str) and each:
                yield each
            else:
                yield from _texts(each, secret)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, secret)
