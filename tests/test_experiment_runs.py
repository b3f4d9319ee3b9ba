"""The runs of an experiment train, and can be stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments.definition import (
    Run,
    read_experiment,
    with_overrides,
)
from experiments.errors import ExperimentError
from experiments.material import Material
from experiments.paper_plan import smoke_config
from experiments.planning import run_config
from job_steps import StepFailedError
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.listing import list_slides
from ssl_train import cli as ssl_cli
from written_slides import tissue_image, write_pyramid


@pytest.fixture(scope="module")
def local_catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("slides")
    for number in range(2):
        write_pyramid(folder / f"slide_{number}.svs", tissue_image(1200, 1100, number), mpp=0.25)
    catalog = str(tmp_path_factory.mktemp("catalog"))
    index_cohort(list_slides(str(folder)), catalog, progress=False)
    compute_foreground(catalog, progress=False)
    return catalog


def write_run(folder: Path, run: Run, catalog: str, **changes: Any) -> list[str]:
    """The words that train a run at reduced size."""
    small = replace(run, config=with_overrides(smoke_config(run), changes))
    config = with_overrides(
        run_config(small, seed=0, catalog=catalog),
        {
            "trainer.default_root_dir": str(folder),
            "exports.folder": str(folder / "exports"),
        },
    )
    if "cache" in config["data"]["stream"]["init_args"]:
        config["data"]["stream"]["init_args"]["cache"] = str(folder / "patch_cache")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return ["ssl-train", "fit", "--config", str(folder / "run.yaml")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's, of torch and of a stream without workers
@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("table2", "40x"),
        ("table3", "30 %"),
        ("table4", "10^3"),
        ("table7", "DINOv2 lr 0.001 decay 1"),
        ("fig1", "from ImageNet"),
        ("table1", "DINOv2 ViT-L14"),
    ],
)
def test_paper_configs_train_two_steps(
    name: str, run: str, local_catalog: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wanted,) = (one for one in read_experiment(name, "paper").runs if one.name == run)
    monkeypatch.setattr(sys, "argv", write_run(tmp_path / "run", wanted, local_catalog))
    ssl_cli.main()
    assert (tmp_path / "run" / "exports" / "step-00000002" / "backbone.json").is_file()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


WORK = """
import sys
from pathlib import Path
from experiments.material import Material
from experiments.planning import Step
from experiments.working import alone, do_steps

folder, done, *words = sys.argv[1:]
resume = Path(folder) / "checkpoints" / "last.ckpt"
step = Step(words=tuple(words), done=(Path(folder) / done,), resume=resume)
with alone(Path(folder)) as lock:
    do_steps([step], Material(scale="pocket", root=Path(folder)), lock)
"""


def start_work(repository: Path, folder: Path, done: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """A program of its own that does one step."""
    paths = [str(repository / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", WORK, str(folder), done, *words]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 500
    while not path.exists():
        assert process.poll() is None, f"ended before {path.name} was there"
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_training_ends_as_if_it_had_not_been(repository: Path, local_catalog: str, tmp_path: Path) -> None:
    (run, *_) = read_experiment("fig1", "pocket").runs
    # Checkpoints at every fifth step, and time enough to be killed between them.
    changes = {"trainer.max_steps": 40, "checkpoints.every_n_steps": 5, "exports.every_n_epochs": 4}
    done = "exports/step-00000040/backbone.json"
    digests = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        words = write_run(folder, run, local_catalog, **changes)
        if name == "killed":
            process = start_work(repository, folder, done, words)
            wait_for(folder / "checkpoints" / "last.ckpt", process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert not (folder / done).exists()
        assert start_work(repository, folder, done, words).wait(timeout=500) == 0
        digests.append(
            [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("exports/*/*.safetensors"))]
        )
    assert len(digests[0]) == 10
    assert digests[0] == digests[1]


def test_a_command_that_outlives_its_program_is_waited_for(repository: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; folder = Path(sys.argv[1]);"
        "(folder / 'started').open('a').write('x'); time.sleep(2); (folder / 'done').write_text('x')"
    )
    words = ["python", "-c", code, str(tmp_path)]
    first = start_work(repository, tmp_path, "done", words)
    wait_for(tmp_path / "started", first)
    first.kill()  # the program alone
    first.wait()
    assert start_work(repository, tmp_path, "done", words).wait(timeout=500) == 0
    assert (tmp_path / "started").read_text() == "x", "not begun a second time"


def test_a_failing_command_stops_the_experiment(tmp_path: Path) -> None:
    from experiments.planning import Step
    from experiments.working import alone, do_steps

    material = Material(scale="pocket", root=tmp_path)
    with alone(tmp_path) as lock:
        with pytest.raises(StepFailedError, match="exit code 3"):
            do_steps([Step(words=("python", "-c", "raise SystemExit(3)"), done=(tmp_path / "x",))], material, lock)
        with pytest.raises(ExperimentError, match="ended well, but did not write"):
            do_steps([Step(words=("python", "-c", ""), done=(tmp_path / "x",))], material, lock)
        mended = ("python", "-c", f"open({str(tmp_path / 'x')!r}, 'w')")
        do_steps([Step(words=("python", "-c", ""), done=(tmp_path / "x",), otherwise=mended)], material, lock)
    assert (tmp_path / "x").exists()


def test_a_step_whose_files_come_early_is_done_when_its_command_has_ended(tmp_path: Path) -> None:
    from experiments.planning import Step
    from experiments.working import alone, do_steps

    early, runs = tmp_path / "early", tmp_path / "runs"
    early.touch()  # as a command leaves it that was killed
    code = f"open({str(runs)!r}, 'a').write('x')"
    step = Step(words=("python", "-c", code), done=(early,), mark=tmp_path / "finished")
    material = Material(scale="pocket", root=tmp_path)
    with alone(tmp_path) as lock:
        for _ in range(2):
            do_steps([step], material, lock)
    assert runs.read_text() == "x"
