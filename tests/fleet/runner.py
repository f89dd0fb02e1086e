"""Run Ansible as an admin does: the installed collection, a real inventory, real ssh; and read what it said."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
INSTALLED = CACHE / "installed"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run of ansible-playbook said."""

    status: int
    text: str
    report: dict[str, t.Any]

    @property
    def stats(self) -> dict[str, dict[str, int]]:
        """Counters by host."""
        return t.cast("dict[str, dict[str, int]]", self.report.get("stats", {}))

    @property
    def changed(self) -> dict[str, int]:
        """Changed tasks by host."""
        return {host: counters["changed"] for host, counters in self.stats.items()}

    def results(self) -> t.Iterator[tuple[str, str, dict[str, t.Any]]]:
        """Host, task and result of everything that ran, in order."""
        for play in self.report.get("plays", []):
            for task in play["tasks"]:
                for host, result in sorted(task["hosts"].items()):
                    yield host, task["task"]["name"], result

    def changes(self) -> list[tuple[str, str, t.Any]]:
        """Host, task and diff of each result that changed something: what check mode has to predict."""
        found = []
        for host, task, result in self.results():
            # "results" are those of a loop, or those that phyllome_vm returns for its guests
            looped = [
                item for item in result.get("results", []) if isinstance(item, dict) and "ansible_loop_var" in item
            ]
            for item in looped or [result]:
                if item.get("changed"):
                    found.append((host, task, item.get("diff")))
        return found

    def messages(self) -> str:
        """Every error message of the run."""
        said = []
        for dummy_host, dummy_task, result in self.results():
            items = [result, *[item for item in result.get("results", []) if isinstance(item, dict)]]
            said += [str(item["msg"]) for item in items if item.get("failed") and "msg" in item]
            said += [str(item["msg"]) for item in items if item.get("unreachable") and "msg" in item]
        return "\n".join(said)

    def ok(self) -> Run:
        """This run, after making sure that it succeeded everywhere."""
        assert self.status == 0, f"ansible-playbook ended with {self.status}:\n{self.messages() or self.text[-6000:]}"
        return self


def install() -> None:
    """Build the tarball and install it, as a user has it."""
    done = subprocess.run(
        ["sh", "tests/tools/build.sh", "install"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment(core: str | None = None) -> dict[str, str]:
    """The environment of an Ansible that sees only the installed collection.

    Args:
        core: an ansible-core that ``make setup`` installed besides the main one, for instance ``2.17``.
    """
    venv = CACHE / (f"venv-{core}" if core else "venv")
    # with PYTHONPATH, Ansible would find the checkout too
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {
        **inherited,
        "PATH": f"{venv}/bin:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(INSTALLED),
        "ANSIBLE_CONFIG": str(ROOT / "tests" / "fleet" / "ansible.cfg"),
    }


def playbook(
    name: str | pathlib.Path, inventory: pathlib.Path, *arguments: str, core: str | None = None, timeout: float = 900
) -> Run:
    """Run a playbook and read its report."""
    report = inventory.with_suffix(".report.json")
    report.unlink(missing_ok=True)
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), str(name), *arguments],
        env={
            **environment(core),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_JSON_INDENT": "0",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    start = done.stdout.find("{")
    try:
        parsed = json.JSONDecoder().raw_decode(done.stdout[start:])[0] if start >= 0 else {}
    except json.JSONDecodeError:
        parsed = {}
    report.write_text(json.dumps(parsed, indent=1))
    return Run(done.returncode, done.stdout + done.stderr, parsed)


@functools.cache
def packed() -> bytes:
    """An archive of what a host needs to run modules and moves without Ansible around them: see module.py and steps.py."""
    (ansible,) = (CACHE / "venv" / "lib").glob("python3*/site-packages/ansible")
    leave = shutil.ignore_patterns("__pycache__", "csharp", "facts", "powershell")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        shutil.copytree(
            INSTALLED / "ansible_collections/phyllome", folder / "ansible_collections/phyllome", ignore=leave
        )
        shutil.copytree(ansible / "module_utils", folder / "ansible/module_utils", ignore=leave)
        (folder / "ansible/__init__.py").touch()
        for program in ("module.py", "steps.py"):
            shutil.copy(ROOT / "tests/fleet" / program, folder)
        # by the Python that the hosts have too: an emulated machine would take long for it
        compiling = ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "ansible"]
        subprocess.run([*compiling, "ansible_collections/phyllome/virt/plugins"], cwd=folder, check=True)
        return subprocess.run(["tar", "-c", "."], cwd=folder, stdout=subprocess.PIPE, check=True).stdout


def inside(
    host: t.Any, program: str, *arguments: str, given: t.Any, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a program of that archive on a host of a lab; the first one on a host finds nothing, and has it unpacked there."""
    folder = "/var/lib/lab"
    argv, given = ["python3", f"{folder}/{program}", *arguments], json.dumps(given)
    done = host.run(argv, input=given, check=False, timeout=timeout)
    if "can't open file" in done.stderr:
        host.run_bytes(["sh", "-c", 'mkdir -p "$1" && tar -x -C "$1" && sync', "sh", folder], input=packed())
        done = host.run(argv, input=given, check=False, timeout=timeout)
    return t.cast("subprocess.CompletedProcess[str]", done)


def direct(host: t.Any, name: str, arguments: dict[str, t.Any], *flags: str, timeout: float = 600) -> dict[str, t.Any]:
    """Run one module on one host of a lab as Ansible runs it there, without the rest of Ansible, and return its result.

    That takes a tenth of the time. What the rest does with modules and their results, playbooks show.
    """
    done = inside(host, "module.py", name, *flags, given=arguments, timeout=timeout)
    try:
        result = t.cast("dict[str, t.Any]", json.loads(done.stdout))
    except json.JSONDecodeError:
        return {"failed": True, "msg": done.stdout + done.stderr}
    if "warnings" in result:  # for people to read only on the controller
        result["warnings"] = [warning["event"]["msg"] for warning in result["warnings"]]
    return result


def module(
    name: str, host: str, inventory: pathlib.Path, arguments: dict[str, t.Any], *flags: str, timeout: float = 600
) -> dict[str, t.Any]:
    """Run one module on one host and return its result."""
    given = ["-a", json.dumps(arguments)] if arguments else []
    done = subprocess.run(
        ["ansible", "-i", str(inventory), host, "-m", name, *given, *flags],
        env={**environment(), "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    start = done.stdout.find("{")
    parsed = json.JSONDecoder().raw_decode(done.stdout[start:])[0]
    return t.cast("dict[str, t.Any]", parsed["plays"][0]["tasks"][0]["hosts"][host])
