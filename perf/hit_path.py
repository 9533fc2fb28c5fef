#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a 4 KiB read that hits costs the engine.

hit_path.py --program P --deny D            instructions per read, from callgrind; exit 1 above the budget
hit_path.py --program P --deny D --scale    nanoseconds of CPU time per read with 1, 2, 4, 8 threads

P is the program hit_path, D is deny_io_uring: valgrind cannot wait on a ring, so metadata goes through the
thread pool. Data reads move nothing (the null backend). The program runs twice with different numbers of
reads; what the two differ by, divided by the difference in reads, is the cost of a read without that of
starting and ending. Counted is what libshardcow executes itself; functions null_* stand for the kernel and
are left out.
"""

import argparse
import collections
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
COPIED = 1 << 63
SKIP = 77


def make_image(path, guest_bytes):
    """A qcow2 image with every cluster allocated. Its data is a hole of the file: nobody reads it."""
    entries = CLUSTER // 8
    clusters = guest_bytes // CLUSTER
    tables = -(-clusters // entries)
    l1_off, l2_off = CLUSTER, 2 * CLUSTER
    data_off = l2_off + tables * CLUSTER
    reftable_off = data_off + clusters * CLUSTER
    header = struct.pack(">IIQIIQIIQQIIQQQQIIB7x", 0x514649FB, 3, 0, 0, CLUSTER_BITS, guest_bytes, 0, tables,
                         l1_off, reftable_off, 1, 0, 0, 0, 0, 0, 4, 112, 0)
    with open(path, "wb") as f:
        f.write(header)
        f.seek(l1_off)
        f.write(struct.pack(f">{tables}Q", *(l2_off + i * CLUSTER | COPIED for i in range(tables))))
        f.seek(l2_off)
        f.write(struct.pack(f">{clusters}Q", *(data_off + i * CLUSTER | COPIED for i in range(clusters))))
        f.truncate(reftable_off + CLUSTER)


NAME = re.compile(r"^(c?ob|c?fn|fl|fi|fe|cfi|cfl)=(?:\((\d+)\))?\s*(.*)$")
# Which names share their numbers: objects, functions, files.
KIND = {"ob": "ob", "cob": "ob", "fn": "fn", "cfn": "fn"}


def self_costs(path):
    """{(object, function): instructions} of a callgrind output file. A name is spelled out once and
    afterwards given by its number; a line after calls= is what the callee cost, which the callee's own lines
    have too."""
    names = {"ob": {}, "fn": {}, "fl": {}}
    costs = collections.Counter()
    current = {"ob": "", "fn": ""}
    of_callee = False
    with open(path) as f:
        for line in f:
            line = line.rstrip("\n")
            match = NAME.match(line)
            if match:
                key, number, text = match.groups()
                table = names[KIND.get(key, "fl")]
                if number:
                    if text:
                        table[number] = text
                    text = table[number]
                if key in current:
                    current[key] = text
            elif line.startswith("calls="):
                of_callee = True
            elif line[:1] in tuple("0123456789+-*"):
                if not of_callee:
                    costs[current["ob"], current["fn"]] += int(line.split()[1])
                of_callee = False
    return costs


def without_debug_info(program, folder):
    """A copy of the program and of libshardcow: valgrind does not know every compiler's debug information,
    and the symbol table is all that this needs."""
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    library = re.search(r"(libshardcow\S*) => (\S+)", linked)
    if not library:
        sys.exit(f"hit_path.py: {program} is not linked with libshardcow")
    copy = os.path.join(folder, "hit_path")
    for source, target in (program, copy), (library.group(2), os.path.join(folder, library.group(1))):
        subprocess.run(["strip", "--strip-debug", "-o", target, source], check=True)
    return copy


def run_callgrind(args, program, image, reads, out):
    command = [args.deny, "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", program, image,
               str(reads), "1"]
    environment = dict(os.environ, LD_LIBRARY_PATH=os.path.dirname(program))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.stderr.write(done.stderr[-3000:])
        sys.exit(f"hit_path.py: {' '.join(command)} ended with {done.returncode}")
    hits, misses = (int(word) for word in done.stdout.split()[2:4])
    return self_costs(out), hits, misses


def count_instructions(args, folder):
    if not shutil.which("valgrind"):
        print("SKIP: valgrind is not installed")
        return SKIP
    image = os.path.join(folder, "image")
    make_image(image, 256 << 20)
    few, many = args.reads
    program = without_debug_info(args.program, folder)
    low, low_hits, low_misses = run_callgrind(args, program, image, few, os.path.join(folder, "low"))
    high, high_hits, high_misses = run_callgrind(args, program, image, many, os.path.join(folder, "high"))
    if high_hits - low_hits != many - few or high_misses != low_misses:
        sys.exit(f"hit_path.py: {many - few} reads more made {high_hits - low_hits} hits and "
                 f"{high_misses - low_misses} misses more: it is not hits that were measured")
    table = collections.Counter()
    for where, cost in high.items():
        if where[0].startswith(os.path.join(folder, "libshardcow")) and not where[1].startswith("null_"):
            table[where[1]] += cost - low.get(where, 0)
    if not table:
        sys.exit("hit_path.py: callgrind saw no function of libshardcow")
    reads = many - few
    total = sum(table.values()) / reads
    print(f"{'instructions':>12}  per 4 KiB read, by function")
    for name, cost in table.most_common():
        if cost / reads >= 0.05:
            print(f"{cost / reads:12.1f}  {name}")
    print(f"{total:12.1f}  in all; the budget is {args.budget}")
    if total < 50:
        sys.exit("hit_path.py: no read is that cheap: something was not counted")
    if total > args.budget:
        print(f"hit_path.py: {total - args.budget:.1f} instructions above the budget", file=sys.stderr)
        return 1
    return 0


def scale(args, folder):
    image = os.path.join(folder, "image")
    make_image(image, 1 << 30)
    base = None
    print(f"{os.cpu_count()} CPUs; median of {args.rounds} rounds of {args.scale_reads} reads per thread")
    print(f"{'threads':>7}  {'ns per read':>11}  {'ratio':>6}")
    for threads in (1, 2, 4, 8):
        ns = []
        for _ in range(args.rounds):
            out = subprocess.run([args.program, image, str(args.scale_reads), str(threads)], check=True,
                                 capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
            ns.append(float(out.split()[1]))
        median = statistics.median(ns)
        base = base or median
        print(f"{threads:7}  {median:11.1f}  {median / base:6.2f}")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the program hit_path")
    parser.add_argument("--deny", required=True, help="the program deny_io_uring")
    parser.add_argument("--budget", type=int, default=400, help="instructions per read (400)")
    parser.add_argument("--reads", type=int, nargs=2, default=(20000, 120000), metavar="N")
    parser.add_argument("--scale", action="store_true", help="CPU time with several threads; informational")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale-reads", type=int, default=2000000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shardcow-hit-") as folder:
        return scale(args, folder) if args.scale else count_instructions(args, folder)


if __name__ == "__main__":
    sys.exit(main())
