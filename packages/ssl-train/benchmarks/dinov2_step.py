"""How long does a training step of DINOv2 take on the CPU, and how much memory, beside its peers?

    python packages/ssl-train/benchmarks/dinov2_step.py [--dinov2 CHECKOUT] [--lightly-python PYTHON] [--batch 8]
        [--rounds 5] [--output FOLDER] [--quick]

The same work for all, in float32: ViT-S/16 with LayerScale, one head of K = 65,536, two crops of 224 px and eight of
96 px of each image, half the globals masked, softmax centring, KoLeo, drop path 0.3, AdamW, clipping, moving average of
the teacher. Crops and masks lie ready; images are counted, not crops.

- ssl-train: `DINOv2` inside a Lightning trainer, logging included;
- facebookresearch/dinov2: its own `SSLMetaArch` from a checkout (commit b8931f7 was used), stepped as its trainer does.
  That needs CUDA, FSDP and xformers: here its networks stay unwrapped, and attention over a list of crops is one call
  of scaled_dot_product_attention for all crops of a size, which is what block-diagonal attention calculates;
- lightly: its head, losses and masked vision transformer on timm, the parts of its published example, in a plain loop
  without layer-wise rates. It may live in an environment of its own: name its Python.

Each runs in a process of its own and they take turns, a step a round; ratios are taken round by round and their median
counts. On a busy machine CPU seconds (`taskset -c 0`) tell more than those of the clock. Prints a table and writes
`dinov2_step.json`; the exit code is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from ssl_train.masking import BlockMasks

FORMAT_VERSION = 2
REPOSITORY = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("dinov2_step_worker.py")
OURS, META, LIGHTLY = "ssl-train", "facebookresearch/dinov2", "lightly"
# Times as fast, and share of the memory.
TARGET_SPEED, TARGET_MEMORY = 1.1, 1.0
SIZES = {"dim": 384, "depth": 12, "heads": 6, "out_dim": 65_536, "global_px": 224, "local_px": 96, "n_locals": 8}
QUICK = {"dim": 48, "depth": 2, "heads": 3, "out_dim": 256, "global_px": 64, "local_px": 32, "n_locals": 2}
PATCH = 16
Answer = dict[str, float]


class Worker:
    """A process that makes a step of one implementation when told to."""

    def __init__(self, python: str, settings: dict[str, Any]) -> None:
        command = [python, str(WORKER), json.dumps(settings)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def step(self) -> Answer:
        """Seconds of the clock and of the CPU (all threads), and the peak memory so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with code {self._process.wait()}; its error stands above")
        return json.loads(line)


def compared(rounds: list[dict[str, Answer]], peer: str) -> dict[str, float]:
    """Medians over rounds of the peer's share of our time, and our share of its memory."""

    def faster(kind: str) -> float:
        return round(statistics.median(r[peer][kind] / r[OURS][kind] for r in rounds), 4)

    return {
        "times_as_fast": faster("seconds"),
        "times_as_fast_by_cpu_seconds": faster("cpu_seconds"),
        "share_of_memory": round(rounds[-1][OURS]["peak_gib"] / rounds[-1][peer]["peak_gib"], 4),
    }


def main() -> int:
    """Measure, print and write; returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dinov2", type=Path, help="checkout of facebookresearch/dinov2; left out where absent")
    parser.add_argument("--lightly-python", help="interpreter of an environment with lightly; left out where absent")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "bench")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {**(QUICK if arguments.quick else SIZES), "batch": arguments.batch}
    masks = BlockMasks()(2 * arguments.batch, crop_size_px=settings["global_px"], patch_size_px=PATCH, key=(0,))
    given = {**settings, "checkout": str(arguments.dinov2), "masks": masks.tolist()}
    pythons = {OURS: sys.executable}
    if arguments.dinov2:
        pythons[META] = sys.executable
    if arguments.lightly_python:
        pythons[LIGHTLY] = arguments.lightly_python
    workers = {name: Worker(python, {**given, "name": name}) for name, python in pythons.items()}
    rounds = [{name: worker.step() for name, worker in workers.items()} for _ in range(arguments.rounds)]
    for worker in workers.values():
        worker.close()
    comparisons = {name: compared(rounds, name) for name in workers if name != OURS}
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "benchmark": "dinov2_step",
        "quick": arguments.quick,
        "settings": settings,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: worker.versions for name, worker in workers.items()},
        "seconds_per_step": {name: [round(r[name]["seconds"], 4) for r in rounds] for name in workers},
        "cpu_seconds_per_step": {name: [round(r[name]["cpu_seconds"], 4) for r in rounds] for name in workers},
        "peak_gib": {name: round(rounds[-1][name]["peak_gib"], 3) for name in workers},
        "compared": comparisons,
    }
    missed = 0
    for name in workers:
        seconds = statistics.median(r[name]["seconds"] for r in rounds)
        print(f"{name:24} {seconds:8.3f} s a step, {settings['batch'] / seconds:8.3f} images/s, ", end="")
        print(f"peak {report['peak_gib'][name]:.2f} GiB")
    for name, found in comparisons.items():
        faster, cheaper, memory = found.values()
        if not arguments.quick:
            missed += int(faster < TARGET_SPEED) + int(memory > TARGET_MEMORY)
        print(
            f"beside {name}: {faster:.2f} times as fast (target {TARGET_SPEED}), by CPU seconds {cheaper:.2f}; ", end=""
        )
        print(f"{memory:.2f} of the memory (target {TARGET_MEMORY})")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "dinov2_step.json").write_text(json.dumps(report, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
