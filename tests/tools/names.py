#!/usr/bin/env python3
"""Whatever examples, guides, playbooks and roles name must exist.

No other tool looks: a module, option or return value misspelt in an example passes ansible-test,
ansible-lint and antsibull-docs. Here, each of these is resolved against its documentation:

- ``phyllome.virt.<name>`` anywhere: a module, plugin, role or playbook of ours;
- the arguments of our modules in tasks, however deep, with their choices;
- variables of our roles: keys of ``vars`` and inventories, names in templates, `names` in guides;
- entries of ``phyllome_guests``: the options of phyllome_vm, and ``host``;
- ``result.x.y`` after ``register: result``, ``ansible_facts.phyllome_x.y``, and what filters such as
  ``map(attribute='x')`` or a loop over them select;
- defaults of roles: the same as in the argument specification.

Read are the examples of modules, fenced yaml in Markdown, playbooks and roles. What cannot be known,
such as the value of a template, is left alone: the check has no opinion rather than a wrong one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import pathlib
import re
import sys
import textwrap
import typing as t

import jinja2
import yaml
from jinja2 import nodes

ROOT = pathlib.Path(__file__).resolve().parents[2]
COLLECTION = "phyllome.virt"
MENTION = re.compile(r"(?<![\w./-])phyllome\.virt\.([a-z0-9_]+)")
FQCN = re.compile(r"[a-z_][a-z0-9_]*\.[a-z0-9_]+\.[a-z0-9_.]+")
FENCE = re.compile(r"^( *)```ya?ml\b[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([a-z][a-z0-9_]*)`(?!`)")

#: Names that look like role variables and are settled by themselves.
GROUPS = {"phyllome_hosts", "phyllome_together", "phyllome_apart"}
GUESTS = "phyllome_guests"
GUEST_MODULE = "phyllome_vm"
#: Options of the guest module that hold guests, or part of one.
GUEST_OPTIONS = ("guests", "defaults")
#: Keys whose value is a template without braces.
EXPRESSIONS = ("when", "until", "failed_when", "changed_when", "that")
ROLE_TASKS = ("include_role", "import_role")
SET_FACT = ("set_fact", "ansible.builtin.set_fact")
#: What every task result has.
COMMON_RETURN: dict[str, t.Any] = {
    name: {}
    for name in (
        "ansible_job_id", "attempts", "changed", "deprecations", "diff", "exception", "failed", "finished",
        "invocation", "item", "msg", "results", "skip_reason", "skipped", "unreachable", "warnings",
    )
}  # fmt: skip
#: Filters that give back what they are given, or one element of it.
TRANSPARENT = {
    "default",
    "d",
    "first",
    "last",
    "list",
    "sort",
    "unique",
    "reverse",
    "flatten",
    "selectattr",
    "rejectattr",
}
METHODS = {"items", "keys", "values", "get"}

Schema: t.TypeAlias = "dict[str, t.Any] | None"


class Map(dict[t.Any, t.Any]):
    """A YAML mapping that knows the lines of its keys."""

    line = 0
    lines: dict[t.Any, int]

    def line_of(self, key: object) -> int:
        return self.lines.get(key, self.line)


class Loader(yaml.SafeLoader):
    """Keeps lines, and takes tags that only Ansible knows (!vault, !unsafe) for plain values."""


def _mapping(loader: Loader, node: yaml.MappingNode) -> t.Iterator[Map]:
    made = Map()
    made.line = node.start_mark.line + 1
    made.lines = {}
    yield made
    loader.flatten_mapping(node)
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        made[key] = loader.construct_object(value_node, deep=True)
        made.lines[key] = key_node.start_mark.line + 1


def _unknown(loader: Loader, dummy_tag: str, node: yaml.Node) -> t.Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
Loader.add_multi_constructor("!", _unknown)


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of YAML that is checked, and where it stands."""

    path: str  #: relative to the root
    line: int  #: number of lines above it
    documents: list[t.Any]


@dataclasses.dataclass
class Catalogue:
    """Everything that may be named."""

    options: dict[str, dict[str, t.Any]] = dataclasses.field(default_factory=dict)
    returns: dict[str, dict[str, t.Any]] = dataclasses.field(default_factory=dict)
    facts: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    roles: dict[str, dict[str, dict[str, t.Any]]] = dataclasses.field(default_factory=dict)
    playbooks: set[str] = dataclasses.field(default_factory=set)
    plugins: set[str] = dataclasses.field(default_factory=set)
    variables: dict[str, dict[str, t.Any]] = dataclasses.field(default_factory=dict)
    action_groups: set[str] = dataclasses.field(default_factory=set)
    #: set by a playbook or role on its way, or kept in a role's vars
    inner: set[str] = dataclasses.field(default_factory=set)

    def names(self) -> set[str]:
        """Whatever may follow ``phyllome.virt.``."""
        return {*self.options, *self.plugins, *self.roles, *self.playbooks, *self.action_groups}

    def guest(self) -> dict[str, t.Any]:
        options = self.options.get(GUEST_MODULE, {})
        return {name: option for name, option in options.items() if name not in GUEST_OPTIONS}

    def known_variable(self, name: str) -> bool:
        return name in self.variables or name in self.inner or name in GROUPS or name == GUESTS

    def looks_like_variable(self, name: str) -> bool:
        prefixes = ("phyllome_", *(f"{role}_" for role in self.roles))
        return name.startswith(prefixes) and name not in self.options and name not in self.facts


def constants(path: pathlib.Path) -> dict[str, str]:
    """The string constants a Python file assigns, in classes too."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.update({target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)})
    return found


def as_list(value: object) -> list[t.Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def module_options(root: pathlib.Path, documentation: dict[str, t.Any]) -> dict[str, t.Any]:
    options = dict(documentation.get("options") or {})
    for fragment in as_list(documentation.get("extends_documentation_fragment")):
        if not str(fragment).startswith(f"{COLLECTION}."):
            continue
        name, dummy_dot, part = str(fragment).removeprefix(f"{COLLECTION}.").partition(".")
        path = root / "plugins" / "doc_fragments" / f"{name}.py"
        text = constants(path).get(part.upper() or "DOCUMENTATION", "") if path.exists() else ""
        options = {**((yaml.safe_load(text) or {}).get("options") or {}), **options}
    return options


def catalogue(root: pathlib.Path) -> Catalogue:
    found = Catalogue()
    for path in sorted((root / "plugins" / "modules").glob("*.py")):
        texts = constants(path)
        found.options[path.stem] = module_options(root, yaml.safe_load(texts.get("DOCUMENTATION", "")) or {})
        found.returns[path.stem] = returned = yaml.safe_load(texts.get("RETURN", "")) or {}
        found.facts.update((returned.get("ansible_facts") or {}).get("contains") or {})
    for path in sorted((root / "plugins").glob("*/*.py")):
        if path.parent.name not in ("modules", "module_utils"):
            found.plugins.add(path.stem)
    for path in sorted((root / "plugins").glob("*/*.yml")):
        found.plugins.add(path.stem)
    runtime = root / "meta" / "runtime.yml"
    if runtime.exists():
        found.action_groups = set((yaml.safe_load(runtime.read_text()) or {}).get("action_groups") or {})
    found.playbooks = {path.stem for path in (root / "playbooks").glob("*.y*ml")}
    for folder in sorted((root / "roles").glob("*/")):
        specs: dict[str, dict[str, t.Any]] = {}
        for path in folder.glob("meta/argument_specs.y*ml"):
            specs = (yaml.safe_load(path.read_text()) or {}).get("argument_specs") or {}
        found.roles[folder.name] = specs
        for spec in specs.values():
            found.variables.update(spec.get("options") or {})
        for path in folder.glob("vars/**/*.y*ml"):
            found.inner.update(yaml.safe_load(path.read_text()) or {})
    return found


class Checker:
    """Walks texts and collects what is wrong with them."""

    def __init__(self, known: Catalogue) -> None:
        self.known = known
        self.wrong: list[str] = []
        self.text = Text("", 0, [])
        self.line = 0
        self.registered: dict[str, Schema] = {}
        self.jinja = jinja2.Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"])

    # -- texts ---------------------------------------------------------------------------------

    def texts(self, texts: t.Sequence[Text]) -> None:
        """Check texts that see each other's registered results: a file, or all files of a role."""
        self.registered = {}
        for text in texts:
            for document in text.documents:
                self.collect(document)
        for text in texts:
            self.text = text
            for document in text.documents:
                self.line = 0
                self.node(document, {})

    def say(self, message: str, line: int | None = None) -> None:
        where = f"{self.text.path}:{self.text.line + (self.line if line is None else line)}: {message}"
        if where not in self.wrong:
            self.wrong.append(where)

    def unknown(self, what: str, name: str, among: t.Iterable[str], line: int | None = None) -> None:
        near = difflib.get_close_matches(name, [str(word) for word in among], 1)
        self.say(f"{what} {name} does not exist" + (f"; {near[0]}?" if near else ""), line)

    def collect(self, node: object) -> None:
        """Remember what tasks register and set, before anything is looked up."""
        if isinstance(node, list):
            for item in node:
                self.collect(item)
        if not isinstance(node, dict):
            return
        if isinstance(node.get("register"), str):
            name, schema = node["register"], self.result_of(node)
            # registered by several tasks: known only where they agree
            agreed = name not in self.registered or self.registered[name] == schema
            self.registered[name] = schema if agreed else None
            self.known.inner.add(name)
        control = node.get("loop_control")
        if isinstance(control, dict):
            self.known.inner.update(
                str(control[key]) for key in ("loop_var", "index_var", "extended") if key in control
            )
        for key in SET_FACT:
            if isinstance(node.get(key), dict):
                self.known.inner.update(str(name) for name in node[key])
        for value in node.values():
            self.collect(value)

    def result_of(self, task: dict[t.Any, t.Any]) -> Schema:
        for key in task:
            name = str(key).removeprefix(f"{COLLECTION}.")
            if name != key and name in self.known.returns:
                result = {"type": "dict", "contains": {**COMMON_RETURN, **self.known.returns[name]}}
                if "loop" in task or any(str(word).startswith("with_") for word in task):
                    return {"type": "dict", "contains": {**COMMON_RETURN, "results": {**result, "type": "list"}}}
                return result
        return None

    # -- YAML ----------------------------------------------------------------------------------

    def node(self, node: object, bound: dict[str, Schema]) -> None:
        """Check whatever this is. ``bound`` holds loop variables and what is known of them."""
        if isinstance(node, str):
            self.template(node, bound)
        elif isinstance(node, list):
            for item in node:
                self.node(item, bound)
        elif isinstance(node, Map):
            bound = self.loop(node, bound)
            for key, value in node.items():
                self.line = node.line_of(key)
                self.key(str(key), value, node, bound)

    def key(self, key: str, value: object, node: Map, bound: dict[str, Schema]) -> None:
        line = self.line
        short = key.removeprefix(f"{COLLECTION}.")
        if short != key:
            self.module(short, value)
            self.strings(value, bound)
        elif key.removeprefix("ansible.builtin.") in ROLE_TASKS and isinstance(value, dict):
            self.role(value.get("name"), value.get("tasks_from"))
            self.strings(value, bound)
        elif key.removeprefix("ansible.builtin.") == "import_playbook" and isinstance(value, str):
            self.playbook(value)
        elif key == "roles" and isinstance(value, list):
            for role in value:
                self.line = role.line if isinstance(role, Map) else line
                self.role(role.get("role", role.get("name")) if isinstance(role, dict) else role, None)
            self.node(value, bound)
        elif key == "module_defaults" and isinstance(value, Map):
            self.module_defaults(value, bound)
        elif key in EXPRESSIONS:
            for expression in as_list(value):
                if isinstance(expression, str):
                    self.template("{{ (" + expression + ") }}", bound)
        elif key in self.known.options and (value is None or isinstance(value, dict)) and "name" in node:
            self.say(f"{key} is written without {COLLECTION}.")
        elif FQCN.fullmatch(key) or key in SET_FACT:
            self.strings(value, bound)
        elif self.known.looks_like_variable(key) and key not in GROUPS:
            self.variable(key, value)
            self.strings(value, bound)
        else:
            self.node(value, bound)
        self.line = line

    def strings(self, node: object, bound: dict[str, Schema]) -> None:
        """Check the templates below a node whose keys mean nothing to us, or were checked already."""
        if isinstance(node, str):
            self.template(node, bound)
        elif isinstance(node, list):
            for item in node:
                self.strings(item, bound)
        elif isinstance(node, dict):
            for key, value in node.items():
                if isinstance(node, Map):
                    self.line = node.line_of(key)
                if key == "that":
                    for expression in as_list(value):
                        if isinstance(expression, str):
                            self.template("{{ (" + expression + ") }}", bound)
                else:
                    self.strings(value, bound)

    def other_kind(self, kind: str, name: str) -> None:
        """Say that this is no such thing; what does not exist at all is said by ``mentions``."""
        if name in self.known.names():
            self.say(f"{COLLECTION}.{name} is no {kind}")

    def module(self, name: str, arguments: object) -> None:
        if name not in self.known.options:
            self.other_kind("module", name)
        elif isinstance(arguments, dict):
            self.options(self.known.options[name], arguments, name)
            if name == GUEST_MODULE:
                for option in GUEST_OPTIONS:
                    if not (self.known.options[name].get(option) or {}).get("suboptions"):
                        for guest in as_list(arguments.get(option)):
                            self.options(self.known.guest(), guest, f"{name}: {option}")

    def module_defaults(self, defaults: Map, bound: dict[str, Schema]) -> None:
        for key, value in defaults.items():
            self.line = defaults.line_of(key)
            if str(key).startswith(f"group/{COLLECTION}.") and isinstance(value, dict):
                for name in value:
                    self.line = value.line_of(name) if isinstance(value, Map) else self.line
                    if not any(name in options for options in self.known.options.values()):
                        self.unknown(f"{key}: option", str(name), ())
                self.strings(value, bound)
            else:
                self.key(str(key), value, defaults, bound)

    def role(self, name: object, tasks_from: object) -> None:
        if not isinstance(name, str) or not name.startswith(f"{COLLECTION}."):
            return
        short = name.removeprefix(f"{COLLECTION}.")
        if short not in self.known.roles:
            self.other_kind("role", short)
        elif isinstance(tasks_from, str) and "{{" not in tasks_from:
            entry = pathlib.PurePath(tasks_from).stem
            if entry not in self.known.roles[short]:
                self.unknown(f"role {name}: entry point", entry, self.known.roles[short])

    def playbook(self, name: str) -> None:
        short = name.removeprefix(f"{COLLECTION}.")
        if short != name and short not in self.known.playbooks:
            self.other_kind("playbook", short)

    def variable(self, name: str, value: object) -> None:
        if name == GUESTS and GUEST_MODULE in self.known.options:
            guest = {**self.known.guest(), "host": {}}
            for entry in as_list(value):
                self.options(guest, entry, name)
        elif name in self.known.variables:
            self.value(self.known.variables[name], value, name)
        elif not self.known.known_variable(name):
            self.unknown("variable", name, self.known.variables)

    def options(self, options: dict[str, t.Any], given: object, where: str) -> None:
        """Check the keys of ``given``, however deep."""
        if not isinstance(given, dict):
            return
        names = {alias: option for option in options.values() for alias in (option or {}).get("aliases") or []}
        names.update(options)
        for key, value in given.items():
            line = given.line_of(key) if isinstance(given, Map) else self.line
            if isinstance(key, str) and "{{" in key:
                continue
            if key not in names:
                self.unknown(f"{where}: option", str(key), names, line)
                continue
            previous, self.line = self.line, line
            self.value(names[key] or {}, value, f"{where}: {key}")
            self.line = previous

    def value(self, option: dict[str, t.Any], value: object, where: str) -> None:
        inner = option.get("suboptions") or option.get("options")
        choices = option.get("choices")
        for item in as_list(value):
            if inner:
                self.options(inner, item, where)
            elif choices and isinstance(item, (str, int)) and "{{" not in str(item) and item not in choices:
                self.say(f"{where}: {item} is not one of {', '.join(map(str, choices))}")

    # -- templates -----------------------------------------------------------------------------

    def loop(self, task: Map, bound: dict[str, Schema]) -> dict[str, Schema]:
        """``bound`` with the loop variable of this task, if it loops over something known."""
        if "loop" not in task:
            return bound
        control = task.get("loop_control")
        name = str(control.get("loop_var", "item")) if isinstance(control, dict) else "item"
        schema: Schema = None
        if isinstance(task["loop"], str):
            self.line = task.line_of("loop")
            parsed = self.parse(task["loop"])
            outputs = [n for n in parsed.body if isinstance(n, nodes.Output)] if parsed else []
            if len(outputs) == 1 and len(outputs[0].nodes) == 1:
                whole = self.schema(outputs[0].nodes[0], bound, quiet=True)
                if whole and whole.get("type") == "list":
                    schema = {**whole, "type": "dict"}
        return {**bound, name: schema}

    def parse(self, text: str) -> nodes.Template | None:
        try:
            return self.jinja.parse(text)
        except jinja2.TemplateSyntaxError:
            return None  # an example of something else; ansible-lint judges templates

    def template(self, text: str, bound: dict[str, Schema]) -> None:
        if "{{" not in text and "{%" not in text:
            return
        parsed = self.parse(text)
        if parsed is None:
            return
        own = {node.name for node in parsed.find_all(nodes.Name) if node.ctx in ("store", "param")}
        scope: dict[str, Schema] = {**bound, **dict.fromkeys(own)}
        for name in parsed.find_all(nodes.Name):
            if name.name not in scope and name.name not in self.registered:
                self.name(name.name)
        for node in parsed.find_all((nodes.Getattr, nodes.Getitem, nodes.Filter)):
            self.schema(node, scope)

    def name(self, name: str) -> None:
        if name in self.known.facts:
            self.say(f"{name} is a fact: ansible_facts.{name}")
        elif self.known.looks_like_variable(name) and not self.known.known_variable(name):
            self.unknown("variable", name, [*self.known.variables, *self.known.inner])

    def schema(self, node: nodes.Node, bound: dict[str, Schema], quiet: bool = False) -> Schema:
        """What is known of the value of an expression; None is nothing. Says what does not exist."""
        if isinstance(node, nodes.Name):
            if node.name == "ansible_facts":
                return None
            return bound[node.name] if node.name in bound else self.registered.get(node.name)
        if isinstance(node, nodes.Getattr):
            return self.member(node.node, node.attr, bound, quiet)
        if isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
                return self.member(node.node, node.arg.value, bound, quiet)
            whole = self.schema(node.node, bound, quiet)
            return {**whole, "type": "dict"} if whole and whole.get("type") == "list" else None
        if isinstance(node, nodes.Filter) and node.node is not None:
            whole = self.schema(node.node, bound, quiet)
            attribute = self.attribute(node)
            if attribute is not None and whole is not None and whole.get("type") == "list":
                part: Schema = {**whole, "type": "dict"}
                for word in attribute.split("."):
                    part = self.look_up(part, word, quiet)
                if node.name == "map":
                    return {**part, "type": "list"} if part else None
            return whole if node.name in TRANSPARENT else None
        return None

    @staticmethod
    def attribute(node: nodes.Filter) -> str | None:
        """The name a filter picks from each element, if it does."""
        for argument in node.kwargs:
            if argument.key == "attribute" and isinstance(argument.value, nodes.Const):
                return str(argument.value.value)
        if node.name in ("selectattr", "rejectattr", "groupby") and node.args and isinstance(node.args[0], nodes.Const):
            return str(node.args[0].value)
        return None

    def member(self, node: nodes.Node, name: str, bound: dict[str, Schema], quiet: bool) -> Schema:
        if self.is_facts(node):
            known = self.known.facts.get(name)
            if known is None and self.known.looks_like_variable(name) and not quiet:
                self.unknown("fact", name, self.known.facts)
            return known
        if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name) and node.node.name == "hostvars":
            if not quiet:
                self.name(name)
            return None
        return self.look_up(self.schema(node, bound, quiet=True), name, quiet)

    @staticmethod
    def is_facts(node: nodes.Node) -> bool:
        """``ansible_facts``, or that of a host or a result."""
        if isinstance(node, nodes.Name):
            return node.name == "ansible_facts"
        if isinstance(node, nodes.Getattr):
            return node.attr == "ansible_facts"
        return (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "ansible_facts"
        )

    def look_up(self, whole: Schema, name: str, quiet: bool) -> Schema:
        contains = (whole or {}).get("contains")
        if whole is None or not contains:
            return None
        if name.isdigit():
            return {**whole, "type": "dict"}
        if name in METHODS and name not in contains:
            return None
        if name in contains and whole.get("type") != "list":
            return contains[name] or None
        if not quiet:
            among = [] if whole.get("type") == "list" else contains
            self.unknown("return value", name, among)
        return None

    # -- plain text ----------------------------------------------------------------------------

    def mentions(self, path: str, text: str) -> None:
        names = self.known.names()
        self.text = Text(path, 0, [])
        for number, line in enumerate(text.splitlines(), 1):
            for match in MENTION.finditer(line):
                # a dot may end a sentence, and a wildcard stands for all of a kind
                if match[1] not in names and not line[match.end() :].startswith(("*", "<")):
                    self.unknown("name", match[0], (f"{COLLECTION}.{name}" for name in names), number)
            if path.endswith(".md"):
                for match in CODE_SPAN.finditer(line):
                    name = match[1]
                    if self.known.looks_like_variable(name) and not self.known.known_variable(name):
                        self.unknown("variable", name, self.known.variables, number)

    def defaults(self, role: str, text: Text) -> None:
        self.text = text
        specs = self.known.roles[role]
        options = {name: option for spec in specs.values() for name, option in (spec.get("options") or {}).items()}
        for document in text.documents:
            for name, value in (document or {}).items():
                line = document.line_of(name)
                if str(name).startswith("__"):
                    continue
                if name not in options:
                    self.unknown(f"role {role}: argument", str(name), options, line)
                elif "default" in options[name] and options[name]["default"] != value and "{{" not in str(value):
                    told = options[name]["default"]
                    self.say(f"{name} is {value!r} here and {told!r} in the argument specification", line)


def load(path: str, text: str, line: int, wrong: list[str]) -> Text:
    try:
        return Text(path, line, list(yaml.load_all(text, Loader)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        wrong.append(f"{path}:{line + (mark.line + 1 if mark else 0)}: not YAML: {getattr(error, 'problem', error)}")
        return Text(path, line, [])


def check(root: pathlib.Path) -> list[str]:
    """Everything that is wrong below ``root``, as ``path:line: message``."""
    known = catalogue(root)
    checker = Checker(known)
    wrong: list[str] = []

    def read(path: pathlib.Path) -> tuple[str, str]:
        return path.relative_to(root).as_posix(), path.read_text()

    groups: list[list[Text]] = []
    for folder in sorted((root / "roles").glob("*/")):
        files = [path for part in ("tasks", "handlers") for path in sorted(folder.glob(f"{part}/**/*.y*ml"))]
        groups.append([load(*read(path), 0, wrong) for path in files])
    for path in sorted((root / "playbooks").glob("**/*.y*ml")):
        groups.append([load(*read(path), 0, wrong)])
    for path in sorted((root / "plugins" / "modules").glob("*.py")):
        name, source = read(path)
        examples = constants(path).get("EXAMPLES", "")
        start = source.find(examples.strip().partition("\n")[0]) if examples.strip() else 0
        lead = examples[: len(examples) - len(examples.lstrip())].count("\n")
        groups.append([load(name, examples, source[: max(start, 0)].count("\n") - lead, wrong)])
    guides = [
        *sorted(root.glob("*.md")),
        *sorted((root / "docs").glob("**/*.md")),
        *sorted((root / "roles").glob("*/*.md")),
    ]
    for path in guides:
        name, source = read(path)
        groups.append(
            [
                load(name, textwrap.dedent(match[2]), source[: match.start(2)].count("\n"), wrong)
                for match in FENCE.finditer(source)
            ]
        )
    for group in groups:  # what is set in one place may be used in another
        for text in group:
            for document in text.documents:
                checker.collect(document)
    for group in groups:
        checker.texts(group)
    for role in known.roles:
        for path in sorted((root / "roles" / role).glob("defaults/**/*.y*ml")):
            checker.defaults(role, load(*read(path), 0, wrong))
    yaml_files = [*(root / "roles").glob("**/*.y*ml"), *(root / "playbooks").glob("**/*.y*ml")]
    for path in [*guides, *sorted(yaml_files), *sorted((root / "plugins").glob("**/*.py"))]:
        checker.mentions(*read(path))
    return wrong + checker.wrong


def main() -> int:
    wrong = check(ROOT)
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
