# SPDX-License-Identifier: MIT
"""Add up test results and print them: summary.py FILE...

A FILE is meson's testlog.json, or lines "pass|fail|skip NAME[: REASON]". A test that prints TAP, or a Criterion
report, counts for as many results as it says it has; any other counts for one. The last line printed is
"N passed, N failed, N skipped"; the exit code is 1 when something failed or nothing was run.
"""

import json
import os
import re
import sys

SHOWN_MAX = 25
DETAIL_LINES_MAX = 12
TAP = re.compile(r"^(ok|not ok)\b ?\d*(?: - )?(.*)$")
CRITERION = re.compile(r"Tested:\D*(\d+)\D+Passing:\D*(\d+)\D+Failing:\D*(\d+)\D+Crashing:\D*(\d+)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SKIP = re.compile(r"#\s*skip\S*\s*(.*)", re.I)


class Sum:
    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = []
        self.details = {}  # number of a failure → lines that explain it

    def add(self, verdict, name, reason=""):
        if verdict == "pass":
            self.passed += 1
        else:
            (self.failed if verdict == "fail" else self.skipped).append((name, reason))


def add_meson(total, label, entry):
    """One test of a testlog.json."""
    name = f"{label}: {entry['name'].split(' / ')[-1]}"
    output = COLOURS.sub("", (entry.get("stdout") or "") + (entry.get("stderr") or ""))
    result = entry["result"]
    before = len(total.failed)
    counted = 0
    if re.search(r"^1\.\.\d+", output, re.M):
        for line in output.splitlines():
            found = TAP.match(line)
            if found:
                skip = SKIP.search(found.group(2))
                verdict = "fail" if found.group(1) != "ok" else "skip" if skip else "pass"
                total.add(verdict, f"{name}: {SKIP.sub('', found.group(2)).strip()}", skip.group(1) if skip else "")
                counted += 1
            elif line.startswith("#   ") and len(total.failed) > before:
                total.details.setdefault(len(total.failed), []).append(line[1:])
    else:
        found = None
        for found in CRITERION.finditer(output):
            tested, passing, failing, crashing = map(int, found.groups())
            counted += tested
            total.passed += passing
            for _ in range(failing + crashing):
                total.add("fail", name)
            if failing + crashing:
                total.details[len(total.failed)] = [line for line in output.splitlines()
                                                    if re.search(r"\[(----|FAIL|CRASH)", line)]
    good = result in ("OK", "EXPECTEDFAIL")
    if result == "SKIP" and not counted:
        lines = [SKIP.sub(r"\1", line).strip() for line in output.splitlines() if line.strip()]
        total.add("skip", name, re.sub(r"^1\.\.0\s*", "", lines[-1]) if lines else "no reason given")
    elif not counted or not good and result != "SKIP" and len(total.failed) == before:
        # No results of its own; or all good and it failed all the same: it crashed, or ran out of time.
        total.add("pass" if good else "fail", name, "" if good else result)
        if not good:
            total.details[len(total.failed)] = output.splitlines()[-DETAIL_LINES_MAX:]


def add_file(total, path):
    with open(path, encoding="utf-8", errors="replace") as f:
        if path.endswith(".json"):
            label = os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(path))))
            for line in f:
                add_meson(total, label, json.loads(line))
            return
        for line in f:
            verdict, _, rest = line.strip().partition(" ")
            name, _, reason = rest.partition(": ")
            total.add(verdict, name, reason)


def main():
    total = Sum()
    for path in sys.argv[1:]:
        add_file(total, path)
    for what, rows, details in (("skipped", total.skipped, {}), ("FAILED", total.failed, total.details)):
        for number, (name, reason) in enumerate(rows[:SHOWN_MAX], 1):
            print(f"{what}: {name}{': ' if reason else ''}{reason}")
            for line in details.get(number, ())[:DETAIL_LINES_MAX]:
                print(f"    {line}")
        if len(rows) > SHOWN_MAX:
            print(f"{what}: {len(rows) - SHOWN_MAX} more")
    print(f"{total.passed} passed, {len(total.failed)} failed, {len(total.skipped)} skipped")
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
