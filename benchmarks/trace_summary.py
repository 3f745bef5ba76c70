"""The time of a traced run by kind of operation.

    python benchmarks/trace_summary.py RUN/profile     # of a run with --config.profile=True
    python benchmarks/trace_summary.py FOLDER          # of benchmarks/train_step.py --trace=FOLDER

An operation is named as in the compiled program without its number: `dot_general` is a matrix
product, `copy_fusion` moves numbers, `multiply_add_fusion` is arithmetic that ends in an addition.
Operations that contain others (loops, calls) are left out. Operations overlap, so their sum may
exceed the time of a step.
"""

import argparse
import collections
import gzip
import json
import re
from pathlib import Path

_HOLDS_OTHERS = ("while", "call", "conditional")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the trace")
    parser.add_argument("--top", type=int, default=12, help="kinds that are shown")
    args = parser.parse_args()
    traces = sorted(args.folder.glob("**/perfetto_trace.json.gz"))
    if not traces:
        parser.error(f"{args.folder}: no perfetto_trace.json.gz in it")
    with gzip.open(traces[-1]) as file:  # the newest: folders are named by date
        events = json.load(file)["traceEvents"]
    seconds, counts = collections.Counter(), collections.Counter()
    for event in events:
        operation = event.get("args", {}).get("hlo_op")
        if operation is None:
            continue
        kind = re.sub(r"[.\d]+(clone)?$", "", operation)
        if kind not in _HOLDS_OTHERS:
            seconds[kind] += event["dur"] / 1e6
            counts[kind] += 1
    total = sum(seconds.values())
    print(f"{total:.3f} s in {sum(counts.values())} operations")
    print("| operation | times | seconds | share |")
    print("|---|---|---|---|")
    for kind, spent in seconds.most_common(args.top):
        print(f"| {kind} | {counts[kind]} | {spent:.3f} | {spent / total:.1%} |")


if __name__ == "__main__":
    main()
