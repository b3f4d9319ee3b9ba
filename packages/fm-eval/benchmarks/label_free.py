"""Label-free metrics of 327,680 x 384 embeddings: seconds and peak memory of a fresh process for each.

    python packages/fm-eval/benchmarks/label_free.py [--rows 327680] [--features 384] [--output FILE]

The rows (float32, 0.47 GiB) are streamed from a file batch by batch, as from a backbone. Targets, for ODCorr: under 5 s
and under 1 GiB, libraries included; and equal to the naive N x N matrix on a subset. CPU seconds are told beside those
of the clock, and the memory after the imports beside the peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fm_eval import CKAStream, ODCorrStream, SpectrumStream, UnsupervisedStream, odcorr

SUBSET = 2000
BATCH = 4096
METRICS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "odcorr": lambda batches: fed(ODCorrStream(), batches).result().metric.value,
    "spectrum": lambda batches: fed(SpectrumStream(), batches).result().rankme_uncentred().value,
    "all": lambda batches: {m.name: m.value for m in fed(UnsupervisedStream(), batches).result()},
    "cka": lambda batches: with_reversed(batches).result().debiased.value,
}


def fed(stream: Any, batches: Iterable[Any]) -> Any:
    """A stream that took all batches."""
    for batch in batches:
        stream.update(batch)
    return stream


def with_reversed(batches: Iterable[Any]) -> CKAStream:
    """CKA of the rows with their features in reverse: 1, for no rotation changes it."""
    stream = CKAStream()
    for batch in batches:
        stream.update(batch, batch[:, ::-1])
    return stream


def read(path: str) -> Iterator[Any]:
    """The rows of an NPY file, batch by batch."""
    with Path(path).open("rb") as file:
        np.lib.format.read_magic(file)
        (rows, features), _, dtype = np.lib.format.read_array_header_1_0(file)
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            yield np.fromfile(file, dtype, count * features).reshape(count, features)


def main() -> None:
    """Measure every metric, or, as a child, one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=327_680)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.npy"
        write(path, arguments.rows, arguments.features)
        subset = np.load(path, mmap_mode="r")[:SUBSET].astype(np.float64)
        pairs = np.corrcoef(subset)[~np.eye(len(subset), dtype=bool)]
        naive = float(np.sqrt((pairs**2).mean()))
        difference = abs((odcorr(subset).metric.value or 0.0) - naive) / naive
        print(f"odcorr of {len(subset)} rows: relative difference to the naive matrix {difference:.1e}")
        results: list[dict[str, Any]] = []
        for name in METRICS:
            command = [sys.executable, __file__, "--child", name, str(path)]
            results.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            print("  ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    if arguments.output:
        content = {"format_version": 1, "benchmark": "label_free", "naive_difference": difference, "results": results}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write(path: Path, rows: int, features: int) -> None:
    """Correlated rows, written chunk by chunk."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(features, features)) * np.geomspace(1, 0.01, features)[:, None]
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, features))
    for start in range(0, rows, 16_384):
        count = min(16_384, rows - start)
        out[start : start + count] = random.standard_normal((count, features)) @ mixing + 0.5


def measure(name: str, path: str) -> dict[str, Any]:
    """One metric of the rows on disk."""
    imported = peak_memory_mib()
    start, cpu = time.perf_counter(), time.process_time()
    value = METRICS[name](read(path))
    return {
        "metric": name,
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "memory_after_imports_mib": imported,
        "peak_memory_mib": peak_memory_mib(),
        "value": value,
    }


def peak_memory_mib() -> int:
    """Largest resident memory of this process. Not `ru_maxrss`: that starts from what the parent held at the fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024


if __name__ == "__main__":
    main()
