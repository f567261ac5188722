"""A table of top-1 at each resize size, one row a finetuning run.

python scripts/results_table.py runs/sample_finetune_mfm runs/sample_finetune_scratch
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def results_table(runs: list[Path]) -> str:
    """Markdown; a run is a folder with finetune.py's result.json; what a run has not evaluated stays empty."""
    found = {run: json.loads((run / "result.json").read_text(encoding="utf-8"))["results"] for run in runs}
    sizes = sorted({row["val_resize_size"] for rows in found.values() for row in rows})
    lines = ["| run | weights | images |" + "".join(f" top-1 % at {size} |" for size in sizes)]
    lines.append("|---|---|---|" + "---|" * len(sizes))
    for run, rows in found.items():
        for weights in dict.fromkeys(row["weights"] for row in rows):
            of_size = {row["val_resize_size"]: row for row in rows if row["weights"] == weights}
            cells = [f" {of_size[size]['top1']:.2f} |" if size in of_size else "  |" for size in sizes]
            lines.append(f"| {run.name} | {weights} | {rows[0]['images']} |" + "".join(cells))
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="A table of top-1 at each resize size, one row a finetuning run.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders that hold a result.json of finetune.py")
    runs = parser.parse_args(argv).runs
    missing = [str(run) for run in runs if not (run / "result.json").is_file()]
    if missing:
        print(f"error: no result.json in {', '.join(missing)}; the run has not finished, or is no run", file=sys.stderr)
        return 2
    print(results_table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
