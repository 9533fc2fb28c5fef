# SPDX-License-Identifier: MIT
"""Bad clients of the vhost-user-blk server, a row each: descriptors, requests, messages as they must not be.

After each row the server has to be there and well: a good client is served, every byte of the disk is what
it was, no file descriptor and no mapping is left over, and no guest memory was written that was not to be.
Where a ring is at fault the client's other queue goes on. hostile_*.py have the rows.
"""

import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import hostile_messages                                                                # noqa: E402
import hostile_requests                                                                # noqa: E402
import hostile_rings                                                                   # noqa: E402
import hostile_setup                                                                   # noqa: E402
import servers                                                                         # noqa: E402
from servers import harness                                                            # noqa: E402
from victim import DISK_BYTES, QUEUES, Aftermath, Victim                               # noqa: E402


def ring_row(deed, right, requests):
    """A row that is done by descriptors; where the request itself is wrong the ring goes on."""
    def play(v, said):
        assert v.d
        deed(v)
        outcome = v.outcome()
        wrong = judge(v, outcome, right, said)
        if outcome == "stopped" and not v.said_so and v.server.said() == said:
            wrong.append("the ring stopped, and neither its error event nor standard error says so")
        if outcome != "closed":
            wrong += [v.trespasses(), v.other_queue_works()]
        if requests and outcome in ("ok", "error"):
            v.ring.chains.pop(v.head)
            if v.d.read(8, 8) != v.model.read(8, 8):
                wrong.append("queue 0 reads something else")
        return outcome, wrong
    return play


def message_row(deed, right):
    def play(v, said):
        outcome = deed(v)
        return outcome, [*judge(v, outcome, right, said), v.trespasses() if v.disk and outcome != "closed" else ""]
    return play


def judge(v, outcome, right, said):
    wrong = [] if outcome in right else [f"{outcome} is none of {', '.join(sorted(right))}"]
    if v.hung_up:
        # The message may be on its way.
        deadline = time.monotonic() + 1
        while v.server.said() == said and time.monotonic() < deadline:
            time.sleep(0.002)
        if v.server.said() == said:
            wrong.append("the connection is closed and standard error does not say why")
    return wrong


def all_rows():
    for name, deed, right in hostile_rings.ROWS:
        yield f"ring: {name}", ring_row(deed, right, False)
    for name, deed, right in hostile_requests.ROWS:
        yield f"request: {name}", ring_row(deed, right, True)
    for name, deed, right in hostile_messages.ROWS:
        yield f"message: {name}", message_row(deed, right)
    for name, deed, right in hostile_setup.ROWS:
        yield f"setup: {name}", message_row(deed, right)


def play(bench, aftermath, rng, row):
    """(outcome, complaints) of one row."""
    v = Victim(bench.server, rng, aftermath.model)
    said = bench.server.said()
    outcome, wrong = "exception", []
    try:
        try:
            outcome, wrong = row(v, said)
        except Exception as error:                                               # noqa: BLE001
            wrong = [f"{type(error).__name__}: {error}"]
        finally:
            v.close()
        wrong.append(aftermath.complaint())
    except Exception as error:                                                   # noqa: BLE001
        wrong.append(f"afterwards: {type(error).__name__}: {error}")
    return outcome, [w for w in wrong if w]


def restart(bench, rng):
    """A new server for the rows that follow, and the disk as its clients are to find it."""
    if bench.server:
        bench.server.forget()
    bench.serve(queues=QUEUES)
    return Aftermath(bench.server, rng)


def play_all(bench, rows):
    rng = bench.rng
    bench.make_image(DISK_BYTES)
    aftermath = restart(bench, rng)
    aftermath.complaint()
    for name, row in rows:
        said = bench.server.said()
        outcome, wrong = play(bench, aftermath, rng, row)
        with open(bench.server.errors, "rb") as f:
            f.seek(said)
            words = f.read(300).decode("latin-1").strip()
        bench.results.check(not wrong, f"{name} ({outcome})", "\n".join(wrong) + f"\nserver: {words!r}")
        if wrong and (not bench.server.alive() or any(w.startswith("afterwards") for w in wrong)):
            print("# the server is started again", flush=True)
            aftermath = restart(bench, rng)
            aftermath.complaint()
    bench.stop()
    bench.verify(aftermath.model)


def main():
    options = servers.add_options(harness.parser(__doc__)).parse_args()
    harness.start(options)
    servers.skip_without_server(options)
    results = harness.Results()
    wanted = re.compile(options.only or "")
    rows = [row for row in all_rows() if wanted.search(row[0])]
    print(f"# {len(rows)} rows", flush=True)
    options.only = None

    def hostile(bench):
        play_all(bench, rows)

    servers.run_cases(options, results, [hostile])
    results.finish()


if __name__ == "__main__":
    main()
