"""An experiment that is killed, at whatever it does, and run again ends in the same table.

Every kill comes right before a file appears under its name (or is opened), which is when half-done work lies around;
`forked_programs` says how. Each experiment is the real one at a few steps, on a handful of painted slides.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# A kill, or Ctrl-C as a terminal sends it: to the program and to the command that it runs.
KILL, CTRL_C = signal.SIGKILL, signal.SIGINT
Moment = tuple[signal.Signals, str, str, int]

# Which signal comes when a process is about to do what, to which path, the how manyth time.
MOMENTS: dict[str, list[Moment]] = {
    "fig1": [
        (CTRL_C, "os.rename", "*/tissue_20x/index.csv", 1),  # patches are painted, at no magnification is there a table
        (KILL, "os.rename", "*/tissue_10x/index.csv", 1),
        (CTRL_C, "open", "*/slides/slide_01.svs", 1),  # in threads of the program
        (KILL, "open", "*/slides/slide_02.svs", 1),  # slides are half painted
        (KILL, "os.rename", "*/catalog/slides/slide_01/slide.json", 1),  # some slides are indexed
        (CTRL_C, "os.rename", "*/catalog/slides.parquet", 1),  # all of them, but in no table
        (KILL, "os.rename", "*/catalog/slides/slide_02/foreground.wkb", 1),
        (KILL, "os.rename", "*/initial/backbone.json", 1),  # weights without their description
        (KILL, "os.rename", "*/embeddings/*/embeddings.npy", 2),  # all rows of a split, but in no array
        (CTRL_C, "os.rename", "*/model/tissue_20x.json", 1),  # embedded, but not scored
        (CTRL_C, "os.rename", "*/checkpoints/last.ckpt", 1),  # trained without any checkpoint
        (KILL, "os.rename", "*/checkpoints/last.ckpt", 2),  # trained further than the last one
        (KILL, "os.rename", "*/exports/step-00000006/backbone.json", 1),  # a checkpoint, but not the export of its step
        (KILL, "os.rename", "*/exports/step-00000008/backbone.safetensors", 1),  # the same at the last step
        (KILL, "os.rename", "*/curves/results/step-00000004/tissue_20x.json", 1),
        (KILL, "os.rename", "*/curves/curves.csv", 4),  # every checkpoint is evaluated, the table lacks the last one
        (KILL, "os.rename", "*/fig1/report.html", 1),
        (KILL, "os.rename", "*/fig1/outcome.json", 1),  # a new table beside no outcome
    ],
    "fig3": [
        (KILL, "os.rename", "*/nuclei/index.csv", 1),
        (KILL, "os.rename", "*/result.json", 2),  # the second decoder is trained
    ],
    "tp53": [
        (KILL, "os.rename", "*/patients.csv", 1),
        (KILL, "open", "*/patches/0000/0000030.png", 1),  # patches are half drawn
        (KILL, "os.rename", "*/model/tp53.fold1.json", 1),  # one of the folds is scored
    ],
}
STOPPED = "experiment: stopped; the same command goes on where it was"


class Programs:
    """Runs of `tools/experiment.py` in processes of their own."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self._log = folder / "log.txt"
        command = [sys.executable, str(repository / "tests" / "forked_programs.py"), str(folder / "tools")]
        # What a killed program cannot remove lies below the test's folder.
        temporary = folder / "temporary"
        temporary.mkdir()
        environment = {**os.environ, "TMPDIR": str(temporary)}
        self._forks = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, name: str, output: Path, moment: Moment | None = None) -> tuple[int, str]:
        """Exit code, and what it said."""
        self._log.write_text("")
        order = {"arguments": ["run", name, "--output", str(output)], "log": str(self._log), "moment": moment}
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write(json.dumps(order) + "\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline()), self._log.read_text(errors="replace")

    def end(self) -> None:
        self._forks.communicate()


@pytest.fixture(scope="module")
def programs(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    folder = tmp_path_factory.mktemp("reduced")
    for name in ("tools", "configs"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    reduce(folder / "configs")
    programs = Programs(repository, folder)
    yield programs
    programs.end()


@contextlib.contextmanager
def edited(path: Path) -> Iterator[dict[str, Any]]:
    """The content of a YAML file, to be changed."""
    content = yaml.safe_load(path.read_text())
    yield content
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def reduce(configs: Path) -> None:
    """Have the pocket's experiments take a few steps on one task."""
    with edited(configs / "experiments" / "pocket.yaml") as content:
        content["overrides"] |= {
            "trainer.max_steps": 8,
            "data.batch_size": 4,
            "model.init_args.epoch_size": 8,
            # Both at every second step: a kill can come between the two.
            "exports.every_n_epochs": 1,
            "checkpoints.every_n_steps": 2,
        }
        content["sample"] |= {"slides": 12, "patches_per_class": 10, "patch_px": 16}
        content["sample"] |= {"nuclei_images": 3, "nuclei_px": 256}
        content["evaluation"] |= {"resamples": 10}
        content["tp53"] |= {"patches": 60}
        content["tasks"] = ["tissue_20x"]
    with edited(configs / "eval" / "tp53.yaml") as content:
        content["folds"] = 3
    for path in configs.glob("experiments/*/experiment.yaml"):
        with edited(path) as content:
            for key in content["pocket"].keys() & {"tasks", "curves"}:
                names = content["pocket"][key]
                content["pocket"][key] = [name for name in names if name not in ("tissue_10x", "tissue_5x")]
    with edited(configs / "experiments" / "fig3" / "experiment.yaml") as content:
        words = content["pocket"]["options"]
        fewer = {"--steps": 4, "--crops_per_image": 2, "--runs": 1, "--max_runs": 1, "--points": 64}
        for option, value in fewer.items():
            words[words.index(option) + 1] = value


def outcome(output: Path, name: str) -> dict[str, bytes]:
    """What the experiment found, but for the report, which says when and how long."""
    folder = output / "pocket" / "results" / name
    return {file: (folder / file).read_bytes() for file in ("table.csv", "table.md", "outcome.json", "plot.svg")}


@pytest.mark.slow
@pytest.mark.timeout(3000)  # thirty runs, on a machine that may have others to do
def test_an_experiment_that_was_stopped_ends_in_the_same_table(programs: Programs, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for name, moments in MOMENTS.items():
        code, said = programs.run(name, whole)
        assert code == 0, said
        for moment in moments:
            code, said = programs.run(name, stopped, moment)
            assert code == (-signal.SIGKILL if moment[0] == KILL else 130), f"{name}, {moment}: {said}"
            assert moment[0] == KILL or said.rstrip().endswith(STOPPED), f"{name}, {moment}: {said}"
            assert "Traceback" not in said, f"{name}, {moment}: {said}"
            assert "wait for another experiment" not in said, "a killed one holds no lock"
        code, said = programs.run(name, stopped)
        assert code == 0, said
        assert outcome(stopped, name) == outcome(whole, name)
        code, said = programs.run(name, stopped)
        assert code == 0, said
        commands = [line.removeprefix("==> ") for line in said.splitlines() if line.startswith("==> ")]
        assert all(command.startswith("fm-eval report") for command in commands), "nothing is done twice"
