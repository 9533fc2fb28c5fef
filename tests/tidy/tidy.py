# SPDX-License-Identifier: MIT
"""Check the source tree's written rules: the order between folders, names, sizes, words.

tidy.py [--root FOLDER]   check a tree
tidy.py --self-test       break each rule in a small tree and see that it is noticed
"""

import argparse
import os
import re
import sys
import tempfile

# Who may see whom: base ← format ← {io, cache} ← engine ← {exports, cli}. Folders that are not named (tests,
# perf, docs) may include anything.
MAY_INCLUDE = {
    "include": {"include"},
    "base": {"base"},
    "format": {"base", "format"},
    "io": {"base", "format", "io"},
    "cache": {"base", "format", "cache"},
    "engine": {"base", "format", "io", "cache", "engine", "include"},
    "exports": {"exports", "include"},
    "cli": {"cli", "exports", "include"},
}
LIBRARY = ("base", "format", "io", "cache", "engine")

# (pattern of the header, files that may include it, why)
HEADER_OWNERS = [
    (r"^urcu\b|^urcu[-.]", r"^base/rcu\.", "liburcu is for base/rcu"),
    (r"^jemalloc/", r"^base/", "jemalloc is for base"),
    (r"^liburing", r"^(base|io|cli|tests|perf|engine|exports)/", "format and cache do no I/O"),
    (r"^(unistd|fcntl|poll|sys/ioctl|sys/socket|sys/eventfd)\.h$", r"^(?!format/|cache/)",
     "format and cache do no I/O"),
]

# (pattern, folders, why)
FORBIDDEN_CALLS = [
    (r"\b(v?f?printf|puts|perror|fputs|syslog)\s*\(", LIBRARY, "the library never prints"),
    (r"\b(_?exit|abort|err|errx)\s*\(", LIBRARY, "the library never exits"),
    (r"\b(synchronize_rcu|defer_rcu)\b", LIBRARY, "wait-free retirement only: call_rcu"),
    (r"\b(IOSQE_IO_DRAIN|IOSQE_ASYNC|IOSQE_IO_LINK|IOSQE_IO_HARDLINK)\b", LIBRARY, "order is made in code"),
    (r"\b(strcpy|strcat|sprintf|gets|alloca)\s*\(", (*LIBRARY, "cli", "exports"), "unbounded"),
]

FORBIDDEN_WORDS = ["TO" "DO", "FIX" "ME", "XX" "X", "HA" "CK", "WI" "P"]
# May stand in several folders.
SHARED_NAMES = {"meson.build", "README.md", ".gitignore", "__init__.py"}
TEXT_ENDINGS = (".c", ".h", ".py", ".sh", ".md", ".build", ".txt", ".map", ".1", ".3", ".bash", ".yml", ".in")
SOURCE_ENDINGS = (".c", ".h", ".py", ".sh", ".build", ".map", ".bash")
LINE_COLUMNS_MAX = 110
FILE_LINES_MAX = 600
PUBLIC_HEADER = "include/shardcow.h"
FUNCTION_LINES_MAX = 100
FUNCTION_LINES_WARN = 70

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


class Tree:
    """The files below a root, read once. problems, found by check: what is wrong; warnings: only noted."""

    def __init__(self, root):
        self.root = root
        self.texts = {}
        self.problems = []
        self.found = {}
        self.warnings = []
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(f for f in folders if not self._skipped(os.path.join(folder, f), f))
            for name in sorted(names):
                path = os.path.relpath(os.path.join(folder, name), root)
                if name.endswith(TEXT_ENDINGS) or path == ".ci/run":
                    with open(os.path.join(root, path), "rb") as f:
                        self.texts[path] = f.read()

    @staticmethod
    def _skipped(path, name):
        """Build folders (meson marks them), version control, caches; dot folders other than .ci."""
        return (name.startswith(".") and name != ".ci" or name == "__pycache__" or name.startswith("build")
                or os.path.isdir(os.path.join(path, "meson-private")))

    def sources(self, *endings):
        return [p for p in self.texts if p.endswith(endings)]

    def lines(self, path):
        return self.texts[path].decode("utf-8", "replace").split("\n")

    def problem(self, rule, path, line, text):
        self.problems.append((rule, f"{path}:{line}: {text} [{rule}]"))


def folder_of(path):
    return path.split("/")[0] if "/" in path else ""


def includes(tree, path):
    """(line number, style, name) of each #include."""
    for number, line in enumerate(tree.lines(path), 1):
        found = INCLUDE.match(line)
        if found:
            yield number, found.group(1), found.group(2)


def resolve(tree, style, name):
    """The file of the tree that an #include means; None for a system header."""
    if "include/" + name in tree.texts:
        return "include/" + name
    return name if name in tree.texts else None


def check_includes(tree):
    graph = {}
    for path in tree.sources(".c", ".h"):
        graph[path] = []
        for number, style, name in includes(tree, path):
            target = resolve(tree, style, name)
            if target:
                graph[path].append(target)
                allowed = MAY_INCLUDE.get(folder_of(path))
                if allowed is not None and folder_of(target) not in allowed:
                    tree.problem("order", path, number, f"{folder_of(path)}/ may not include {target}")
            elif style == '"':
                tree.problem("missing", path, number, f'"{name}" is not in the tree; paths start at its root')
            else:
                for pattern, owner, why in HEADER_OWNERS:
                    if re.search(pattern, name) and not re.search(owner, path):
                        tree.problem("owner", path, number, f"<{name}> is not for this file: {why}")
    check_cycles(tree, graph)


def check_cycles(tree, graph):
    state = {}

    def visit(path, trail):
        state[path] = "open"
        for target in graph.get(path, ()):
            if state.get(target) == "open":
                tree.problem("cycle", path, 1, " → ".join(trail[trail.index(target):] + [target]))
            elif target not in state:
                visit(target, trail + [target])
        state[path] = "done"

    for path in sorted(graph):
        if path not in state:
            visit(path, [path])


def check_names(tree):
    seen = {}
    for path in sorted(tree.texts):
        name = os.path.basename(path)
        if name in SHARED_NAMES:
            continue
        if name in seen:
            tree.problem("unique", path, 1, f"the name is taken by {seen[name]}")
        seen.setdefault(name, path)


def check_text(tree):
    for path, raw in tree.texts.items():
        if b"\r" in raw:
            tree.problem("newline", path, 1, "carriage return")
        if not raw.endswith(b"\n") or raw.endswith(b"\n\n"):
            tree.problem("newline", path, raw.count(b"\n") + 1, "does not end with one newline")
        lines = tree.lines(path)
        for number, line in enumerate(lines, 1):
            if "\t" in line:
                tree.problem("tab", path, number, "tab")
            if line != line.rstrip() and not path.endswith(".md"):
                tree.problem("space", path, number, "space at the end of the line")
            # A string that users see stays in one piece, so that it can be searched for.
            if len(STRING.sub('""', line)) > LINE_COLUMNS_MAX and path.endswith(SOURCE_ENDINGS):
                tree.problem("columns", path, number, f"{len(line)} columns, at most {LINE_COLUMNS_MAX}")
            for word in FORBIDDEN_WORDS:
                if re.search(rf"\b{word}\b", line):
                    tree.problem("word", path, number, f"{word}: do it or write down why not")
        if path.endswith(SOURCE_ENDINGS) or path == ".ci/run":
            if "SPDX-License-Identifier: MIT" not in "\n".join(lines[:2]):
                tree.problem("licence", path, 1, "no SPDX-License-Identifier: MIT in the first two lines")
        # The public header is one file, so that embedders have one to read.
        if path.endswith((".c", ".h", ".py", ".sh")) and len(lines) - 1 > FILE_LINES_MAX and path != PUBLIC_HEADER:
            tree.problem("long-file", path, len(lines), f"{len(lines) - 1} lines, at most {FILE_LINES_MAX}")


def functions(lines):
    """(first line, name, lines) of each function; bodies open with a brace of their own in column 0."""
    start = None
    for i, line in enumerate(lines):
        if line == "{":
            start = i
        elif line == "}" and start is not None:
            head = start - 1
            while head > 0 and lines[head - 1] and lines[head - 1][0] not in "}#/ *;" and \
                    not lines[head - 1].endswith((";", "*/")):
                head -= 1
            name = re.search(r"(\w+)\s*\(", " ".join(lines[head:start]))
            yield head + 1, name.group(1) if name else "?", i - head + 1
            start = None


def check_functions(tree):
    for path in tree.sources(".c", ".h"):
        for number, name, count in functions(tree.lines(path)):
            if count > FUNCTION_LINES_MAX:
                tree.problem("long-function", path, number, f"{name}() has {count} lines, at most "
                                                            f"{FUNCTION_LINES_MAX}")
            elif count > FUNCTION_LINES_WARN:
                tree.warnings.append(f"{path}:{number}: {name}() has {count} lines")


def without_comments_and_strings(text):
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    return STRING.sub('""', text)


def check_calls(tree):
    for path in tree.sources(".c", ".h"):
        code = None
        for pattern, where, why in FORBIDDEN_CALLS:
            if folder_of(path) not in where:
                continue
            code = code or without_comments_and_strings("\n".join(tree.lines(path))).split("\n")
            for number, line in enumerate(code, 1):
                found = re.search(pattern, line)
                if found:
                    tree.problem("call", path, number, f"{found.group(0).rstrip('( ')}: {why}")


def check_guards(tree):
    for path in tree.sources(".h"):
        guard = re.sub(r"\W", "_", path.removeprefix("include/").removeprefix("tests/")).upper()
        text = tree.texts[path].decode("utf-8", "replace")
        if f"#ifndef {guard}\n#define {guard}\n" not in text:
            tree.problem("guard", path, 1, f"no include guard named {guard}")


def check_built(tree):
    """A source file that no meson.build names is never compiled."""
    builds = {}
    for path in tree.sources("meson.build"):
        for folder in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
            builds[folder] = builds.get(folder, "") + tree.texts[path].decode("utf-8", "replace")
    for path in tree.sources(".c"):
        stem = os.path.basename(path)[:-2]
        folder = os.path.dirname(path)
        text = builds.get(folder, "") + builds.get(os.path.dirname(folder), "")
        if not re.search(rf"['/]{re.escape(stem)}(\.c)?'", text):
            tree.problem("built", path, 1, "no meson.build of its folder or the one above names it")


CHECKS = [check_includes, check_names, check_text, check_functions, check_calls, check_guards, check_built]


def run_checks(root):
    tree = Tree(root)
    for check in CHECKS:
        before = len(tree.problems)
        check(tree)
        tree.found[check] = tree.problems[before:]
    return tree


# ---- self-test -------------------------------------------------------------------------------------

MIT = "/* SPDX-License-Identifier: MIT */\n"
BUILD = "# SPDX-License-Identifier: MIT\n"


def header(guard, body=""):
    return f"{MIT}#ifndef {guard}\n#define {guard}\n{body}#endif\n"


def long_function(count):
    return MIT + "int f(void)\n{\n" + "    f();\n" * (count - 3) + "}\n"


CLEAN = {
    "include/shardcow.h": header("SHARDCOW_H"),
    "base/list.h": header("BASE_LIST_H"),
    "base/rcu.h": header("BASE_RCU_H", "#include <urcu/urcu-memb.h>\n"),
    "format/header.h": header("FORMAT_HEADER_H", '#include "base/list.h"\n'),
    "io/file.h": header("IO_FILE_H", '#include "format/header.h"\n#include <fcntl.h>\n'),
    "cache/slot.h": header("CACHE_SLOT_H", '#include "base/rcu.h"\n'),
    "engine/map.c": MIT + '#include "cache/slot.h"\n#include "io/file.h"\n#include <shardcow.h>\n\n'
                          'int map(void)\n{\n    return 0; /* printf() */\n}\n',
    "engine/meson.build": BUILD + "sources = files('map.c')\n",
    "cli/main.c": MIT + '#include "shardcow.h"\n',
    "cli/meson.build": BUILD + "executable('x', 'main.c')\n",
    "tests/unit/test_map.c": MIT + '#include "io/file.h"\n',
    "tests/unit/meson.build": BUILD + "foreach t : ['test_map']\nendforeach\n",
}

# rule → files to add or replace in the clean tree, each a way to break it
BROKEN = [
    ("order", {"base/error.h": header("BASE_ERROR_H", '#include "format/header.h"\n')}),
    ("order", {"io/file.h": header("IO_FILE_H", '#include "cache/slot.h"\n')}),
    ("order", {"cache/slot.h": header("CACHE_SLOT_H", '#include "io/file.h"\n')}),
    ("order", {"format/header.h": header("FORMAT_HEADER_H", "#include <shardcow.h>\n")}),
    ("order", {"cli/main.c": MIT + '#include "base/list.h"\n'}),
    ("order", {"exports/nbd.h": header("EXPORTS_NBD_H", '#include "engine/map.h"\n'),
               "engine/map.h": header("ENGINE_MAP_H")}),
    ("order", {"include/shardcow.h": header("SHARDCOW_H", '#include "base/list.h"\n')}),
    ("missing", {"io/file.h": header("IO_FILE_H", '#include "list.h"\n')}),
    ("owner", {"base/list.h": header("BASE_LIST_H", "#include <urcu/list.h>\n")}),
    ("owner", {"cache/slot.h": header("CACHE_SLOT_H", "#include <unistd.h>\n")}),
    ("owner", {"format/header.h": header("FORMAT_HEADER_H", "#include <liburing.h>\n")}),
    ("owner", {"engine/map.c": MIT + "#include <jemalloc/jemalloc.h>\n"}),
    ("cycle", {"base/a.h": header("BASE_A_H", '#include "base/b.h"\n'),
               "base/b.h": header("BASE_B_H", '#include "base/a.h"\n')}),
    ("unique", {"cache/list.h": header("CACHE_LIST_H")}),
    ("newline", {"base/list.h": header("BASE_LIST_H").rstrip("\n")}),
    ("newline", {"base/list.h": header("BASE_LIST_H") + "\n"}),
    ("newline", {"docs/text.md": "one\r\n"}),
    ("tab", {"cli/main.c": MIT + "\tint y;\n"}),
    ("space", {"cli/main.c": MIT + "int x; \n"}),
    ("columns", {"cli/main.c": MIT + "int " + "x" * 107 + ";\n"}),
    *[("word", {"docs/text.md": f"this is a {word} here\n"}) for word in FORBIDDEN_WORDS],
    ("licence", {"cli/main.c": "int x;\n"}),
    ("licence", {"tests/lib/a.py": "import os\n"}),
    ("long-file", {"cli/main.c": MIT + "int x;\n" * FILE_LINES_MAX}),
    ("long-function", {"cli/main.c": long_function(FUNCTION_LINES_MAX + 1)}),
    ("call", {"engine/map.c": MIT + "int f(void)\n{\n    return printf(1);\n}\n"}),
    ("call", {"engine/map.c": MIT + "int f(void)\n{\n    abort();\n}\n"}),
    ("call", {"engine/map.c": MIT + "int f(void)\n{\n    synchronize_rcu();\n}\n"}),
    ("call", {"cli/main.c": MIT + "int f(void)\n{\n    strcpy(a, b);\n}\n"}),
    ("guard", {"base/list.h": header("LIST_H")}),
    ("built", {"engine/lost.c": MIT}),
]


def write_tree(root, files):
    for path, text in files.items():
        full = os.path.join(root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as f:
            f.write(text)


def self_test():
    failed = 0
    cases = [("nothing", {}), ("nothing", {"cli/main.c": long_function(FUNCTION_LINES_MAX)}), *BROKEN]
    for number, (rule, change) in enumerate(cases, 1):
        with tempfile.TemporaryDirectory() as root:
            write_tree(root, {**CLEAN, **change})
            found = {r for r, _ in run_checks(root).problems}
        good = found == ({rule} if rule != "nothing" else set())
        failed += not good
        print(f"{'ok' if good else 'not ok'} {number} - notices {rule} in {', '.join(change) or 'a clean tree'}")
        if not good:
            print(f"#   noticed {found or 'nothing'}")
    print(f"1..{len(cases)}")
    return 1 if failed else 0


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--root", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    p.add_argument("--self-test", action="store_true")
    options = p.parse_args()
    if options.self_test:
        return self_test()
    tree = run_checks(os.path.abspath(options.root))
    for warning in tree.warnings:
        print(f"# note: {warning}")
    for number, check in enumerate(CHECKS, 1):
        problems = tree.found[check]
        print(f"{'not ok' if problems else 'ok'} {number} - "
              f"{check.__name__.replace('check_', '')} of {len(tree.texts)} files")
        for _, text in problems:
            print(f"#   {text}")
    print(f"1..{len(CHECKS)}")
    return 1 if tree.problems else 0


if __name__ == "__main__":
    sys.exit(main())
