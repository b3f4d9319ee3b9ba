"""The paper's experiments, each one command, at pocket scale on a laptop or at paper scale on GPUs.

    python tools/experiment.py list
    python tools/experiment.py run table2                                   minutes, from slides that are painted here
    python tools/experiment.py run table2 --seeds 3                         the long form, with the spread over seeds
    python tools/experiment.py run table2 --scale paper --plan              configs, GPU hours and disk; nothing is run
    python tools/experiment.py run table2 --scale paper --slides s3://bucket/tcga --data /datasets

Only commands of the three packages are run, each shown before. What is finished is never made again, whichever
experiment asked for it first: stop at any moment, and the same command goes on. The outcome stands in
OUTPUT/SCALE/results/NAME: table.md and table.csv beside the paper's numbers, plot.svg, outcome.json, report.html.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from experiments.composing import run_experiment
from experiments.costs import read_throughput
from experiments.definition import Experiment, experiment_names, read_experiment, running_order
from experiments.errors import ExperimentError
from experiments.material import OWN_TASK, Material
from experiments.paper_plan import print_plan, smoke
from experiments.planning import Places
from experiments.working import alone
from experiments.writing import Outcome, write_outcome
from job_steps import StepFailedError, run_command

PACKAGES = ("online-patching", "ssl-train", "fm-eval")
ALL = "all"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)
    if options.command == "list":
        for name in experiment_names():
            experiment = read_experiment(name, "pocket")
            print(f"{name:8} {experiment.source:24} {experiment.title}")
        return 0
    try:
        names = running_order(options.scale) if options.name == ALL else [options.name]
        for name in names:
            _work(read_experiment(name, options.scale), options)
    except (ExperimentError, StepFailedError, OSError, RuntimeError) as error:
        print(f"experiment: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiment: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments")
    run = commands.add_parser("run", help="run one, or plan it")
    run.add_argument("name", help=f"one of {', '.join(experiment_names())}, or {ALL}")
    run.add_argument("--scale", choices=("pocket", "paper"), default="pocket")
    run.add_argument("--slides", nargs="+", default=[], help="slides or folders of slides to index, local or URL")
    run.add_argument("--catalog", help="a catalog that exists, in place of slides")
    run.add_argument("--data", type=Path, help="paper: folder of data sets; pocket: folder with index.csv")
    run.add_argument("--weights", type=Path, help="folder with the weights of others")
    run.add_argument("--seeds", type=int, default=1, help="training seeds")
    run.add_argument("--device", default="cpu", help="of the evaluations")
    run.add_argument("--output", type=Path, default=Path("experiments"))
    run.add_argument("--plan", action="store_true", help="write the configs and say what they cost; run nothing")
    run.add_argument("--measured", type=Path, help="run folder, or YAML, whose throughput the plan's hours come from")
    run.add_argument(
        "--smoke", action="store_true", help="two steps of every config at reduced size, on painted slides"
    )
    options = parser.parse_args(arguments)
    if options.command == "run":
        if options.seeds < 1:
            parser.error(f"--seeds: got {options.seeds}, allowed at least 1")
        if options.catalog is not None and options.slides:
            parser.error("--slides and --catalog: give one of them")
        for name in ("data", "weights", "measured"):
            path = getattr(options, name)
            if path is not None and not path.exists():
                parser.error(f"--{name} {path}: does not exist")
    return options


def _work(experiment: Experiment, options: argparse.Namespace) -> None:
    root: Path = options.output.resolve() / options.scale
    material = Material(
        scale=options.scale,
        root=root,
        slides=tuple(options.slides),
        catalog_given=options.catalog,
        data=options.data,
    )
    places = Places(
        root=root,
        catalog=material.catalog,
        catalog_key=material.catalog_key,
        versions={name: version(name) for name in PACKAGES},
        weights=options.weights,
        device=options.device,
    )
    if options.plan:
        print_plan(experiment, places, read_throughput(options.measured), seeds=options.seeds)
        return
    if experiment.scale == "pocket" and options.data is not None:
        experiment = _on_own_patches(experiment)
    started = time.monotonic()
    with alone(root) as lock:
        if options.smoke:
            smoke(experiment, options.output.resolve(), lock)
            return
        outcome = run_experiment(experiment, material, places, seeds=options.seeds, lock=lock)
        folder = root / "results" / experiment.name
        pictures = _report(outcome, folder, lock)
        write_outcome(replace(outcome, pictures=pictures), folder)
    print(f"\n{(folder / 'table.md').read_text(encoding='utf-8')}")
    print(f"{experiment.name}: {(time.monotonic() - started) / 60:.1f} minutes -> {folder}")


def _on_own_patches(experiment: Experiment) -> Experiment:
    """The tasks that are painted give way to the user's one."""

    def own(tasks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(OWN_TASK if task.startswith("tissue") else task for task in tasks))

    return replace(experiment, tasks=own(experiment.tasks), curves=own(experiment.curves))


def _report(outcome: Outcome, folder: Path, lock: int) -> dict[str, str]:
    """The page of `fm-eval report` on the headline task, each result under the name of its row."""
    if not outcome.results:
        return {}
    files = []
    for number, (row, path) in enumerate(outcome.results):
        content = json.loads(path.read_text(encoding="utf-8"))
        file = folder / "named_results" / f"{number:03d}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**content, "name": row, "role": row}), encoding="utf-8")
        files.append(file)
    run_command("fm-eval", "report", *files, "--output", folder / "report.html", keep_open=[lock])
    return {"report.html": "the report of fm-eval on the same results"}


if __name__ == "__main__":
    sys.exit(main())
