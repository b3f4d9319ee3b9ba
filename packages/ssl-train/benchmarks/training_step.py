"""How many images a second does a training step of DINO take, beside facebookresearch/dino and lightly?

    python packages/ssl-train/benchmarks/training_step.py --dino CHECKOUT [--lightly-python PYTHON]
        [--device cpu|cuda] [--precision fp32|bf16|fp16] [--batch 8] [--rounds 5] [--output FOLDER] [--quick]

The same work for all: ViT-S/16, K = 65,536, two crops of 224 px and eight of 96 px of each image, AdamW, clipping,
moving average of the teacher. The crops are tensors that lie ready on the device, so data and augmentation are left
out; images are counted, not crops.

- ssl-train: `DINO` inside a Lightning trainer, logging included;
- facebookresearch/dino: its own `train_one_epoch` from a checkout (commit 7c446df was used), which on the CPU needs
  its calls of `.cuda()` turned into nothing, and for bf16 its autocast turned to that type;
- lightly: its DINO head, loss and teacher update on timm's vision transformer, the parts of its published example, in a
  plain loop. It may live in an environment of its own: name its Python.

Each runs in a process of its own and they take turns, round by round, one warm-up step before the timed ones of each
round; ratios are taken round by round and their median counts. On a single core (`taskset -c 0`) a second is one of CPU
time of the process, so that other programs on the machine take little part in it. Prints a table and writes
`training_step.json`; the exit code is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
REPOSITORY = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("training_step_worker.py")
OURS = "ssl-train"
# (device, precision) -> peer -> times as fast that ssl-train is to be.
TARGETS = {
    ("cpu", "fp32"): {"facebookresearch/dino": 1.1, "lightly": 1.1},
    ("cuda", "bf16"): {"facebookresearch/dino": 2.0},
}
SIZES = {"vit": "small", "patch_size": 16, "out_dim": 65_536, "global_px": 224, "local_px": 96, "n_locals": 8}
QUICK = {"vit": "tiny", "patch_size": 16, "out_dim": 256, "global_px": 64, "local_px": 32, "n_locals": 2}


class Worker:
    """A process that trains one implementation when told to."""

    def __init__(self, name: str, python: str, settings: dict[str, Any]) -> None:
        self.name = name
        command = [python, str(WORKER), json.dumps({**settings, "name": name})]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions: dict[str, str] = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: ended with code {self._process.wait()}; its error stands above")
        return json.loads(line)

    def images_per_second(self) -> float:
        """One round."""
        assert self._process.stdin is not None
        # A process that has ended is told by its answer.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return float(self._answer()["images_per_second"])

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> int:
    """Measure, print and write; returns 1 where a target is missed."""
    arguments = _parsed()
    settings = {
        **(QUICK if arguments.quick else SIZES),
        "device": arguments.device,
        "precision": arguments.precision,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "checkout": str(arguments.dino) if arguments.dino else None,
    }
    pythons = {OURS: sys.executable}
    if arguments.dino:
        pythons["facebookresearch/dino"] = sys.executable
    if arguments.lightly_python:
        pythons["lightly"] = arguments.lightly_python
    workers = [Worker(name, python, settings) for name, python in pythons.items()]
    speeds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for _ in range(arguments.rounds):
        for worker in workers:
            speeds[worker.name].append(worker.images_per_second())
    for worker in workers:
        worker.stop()
    report = {
        "format_version": FORMAT_VERSION,
        "benchmark": "training_step",
        "quick": arguments.quick,
        "rounds": arguments.rounds,
        "settings": {name: value for name, value in settings.items() if name != "checkout"},
        "machine": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "versions": {worker.name: worker.versions for worker in workers},
        },
        "images_per_second": {name: _summary(values) for name, values in speeds.items()},
        "times_as_fast_as": {
            name: _summary([ours / theirs for ours, theirs in zip(speeds[OURS], values, strict=True)])
            for name, values in speeds.items()
            if name != OURS
        },
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / "training_step.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    return _tell(report, file)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dino", type=Path, help="checkout of facebookresearch/dino; left out where absent")
    parser.add_argument(
        "--lightly-python", help="Python of an environment with lightly and timm; left out where absent"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "bench")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    arguments = parser.parse_args()
    if min(arguments.batch, arguments.steps, arguments.rounds) < 1:
        parser.error("--batch, --steps and --rounds must be at least 1")
    if arguments.dino and not (arguments.dino / "main_dino.py").is_file():
        parser.error(f"--dino {arguments.dino}: no main_dino.py there; give a checkout of facebookresearch/dino")
    return arguments


def _summary(values: list[float]) -> dict[str, Any]:
    rounded = [round(value, 4) for value in values]
    return {"median": round(statistics.median(values), 4), "min": min(rounded), "max": max(rounded), "rounds": rounded}


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _tell(report: dict[str, Any], file: Path) -> int:
    settings = report["settings"]
    targets = TARGETS.get((settings["device"], settings["precision"]), {})
    missed = 0
    print(f"{settings['device']}, {settings['precision']}, batch {settings['batch']}: images a second, median (range)")
    for name, speed in report["images_per_second"].items():
        line = f"  {name:24} {speed['median']:9.3f} ({speed['min']:.3f} to {speed['max']:.3f})"
        ratio = report["times_as_fast_as"].get(name)
        if ratio is not None:
            line += f"   {OURS} is {ratio['median']:.2f} times as fast ({ratio['min']:.2f} to {ratio['max']:.2f})"
            if name in targets and not report["quick"]:
                reached = ratio["median"] >= targets[name]
                missed += not reached
                line += f", target {targets[name]}: {'reached' if reached else 'MISSED'}"
        print(line)
    print(f"written: {file}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
