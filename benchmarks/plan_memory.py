"""Plans a CSV of N synthetic rows in this process, whose peak memory it reports.

    python benchmarks/plan_memory.py 200000

Prints the peak resident set in MB, the seconds, and the numbers of shards and of shared groups.
"""

import sys
import tempfile
import time
from pathlib import Path

import peak_memory

from input_pipeline.conversion import plan
from input_pipeline.conversion.planned_rows import PlannedRow
from input_pipeline.conversion.sources.base import CaptionOptions
from input_pipeline.conversion.sources.tables import TableOptions, open_csv


def main() -> None:
    num_rows = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        with table.open("w") as file:
            file.write("image,text,modality,source,group,split\n")
            for n in range(num_rows):
                split = "val" if n % 10 == 0 else "train"
                text = f"An invented finding of number {n}, described in a sentence. " * 3
                file.write(f'a/folder/image_{n}.jpg,"{text}",ct,src,patient{n // 4},{split}\n')
        directory = Path(folder) / "plan"
        directory.mkdir()
        rows = open_csv(TableOptions(table)).conversion(CaptionOptions()).rows
        # as if every image were 100 kB, so that the number of shards grows with the corpus
        rows = (PlannedRow(r.row, r.split, r.id, r.number, r.image, r.group, 100_000) for r in rows)
        start = time.monotonic()
        made = plan.build(directory, "n", rows, print, num_shards=None, seed=0)
        seconds = time.monotonic() - start
        assert sum(made.shards.values()) == num_rows
    peak = peak_memory.of_this_process() / 2**20
    print(f"{peak:.1f} {seconds:.2f} {len(made.shards)} {made.num_shared_groups}")


if __name__ == "__main__":
    main()
