"""Does `doctor` tell augmented copies from other pictures of the same tissue?

    python packages/fm-eval/benchmarks/near_duplicates.py --data INDEX.CSV

For a dataset whose groups are families of augmented copies (LC25000): the similarity of the likeliest pairs across
splits, once with whole groups and once divided by image. With whole groups every pair is a wrong one.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from fm_eval import PatchDataset, load_dataset
from fm_eval.near_duplicates import SAME_PICTURE, find_near_duplicates

_THRESHOLDS = (0.5, 0.55, 0.6, SAME_PICTURE, 0.7)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="index CSV with group_id")
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    result = {
        "threshold": SAME_PICTURE,
        "whole groups": _measure(load_dataset(arguments.data), arguments.threads),
        "by image": _measure(load_dataset(arguments.data, split="image"), arguments.threads),
    }
    print(json.dumps(result, indent=1))


def _measure(dataset: PatchDataset, threads: int) -> dict[str, object]:
    split = dataset.table["split"].to_numpy(dtype=str)
    group = dataset.table["group_id"].to_numpy(dtype=str)
    start = time.perf_counter()
    pairs = find_near_duplicates(dataset.images, split, threshold=min(_THRESHOLDS), threads=threads)
    seconds = time.perf_counter() - start
    crossing = set(dataset.groups_across_splits)
    leaking = np.flatnonzero(np.isin(group, list(crossing)))
    found = {}
    for threshold in _THRESHOLDS:
        kept = [pair for pair in pairs if pair.similarity >= threshold]
        flagged = {row for pair in kept for row in (pair.first, pair.second)}
        found[str(threshold)] = {
            "pairs": len(kept),
            "pairs of two groups": sum(group[pair.first] != group[pair.second] for pair in kept),
            "images flagged": len(flagged),
            "of the leaking images": round(float(np.isin(leaking, list(flagged)).mean()), 4) if len(leaking) else None,
        }
    return {"images": len(dataset), "leaking images": len(leaking), "seconds": round(seconds, 1), "at": found}


if __name__ == "__main__":
    main()
