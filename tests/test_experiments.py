"""The paper's experiments: what they consist of, which runs they share, what they cost and lack."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment import main
from experiments.cohort import write_cohort_tables, write_patients
from experiments.costs import backbone_parameters, cost_of, patches_per_step, read_throughput
from experiments.definition import (
    EXPERIMENTS,
    RANDOM,
    Scale,
    experiment_names,
    read_experiment,
    running_order,
    with_overrides,
)
from experiments.errors import ExperimentError
from experiments.material import Material
from experiments.nuclei import CLASSES, write_nuclei
from experiments.planning import Fit, Places, plan_fits
from ssl_train import cli as ssl_cli

SCALES: tuple[Scale, ...] = ("pocket", "paper")
EVERY = [(name, scale) for scale in SCALES for name in experiment_names()]


def places_in(folder: Path, **changes: Any) -> Places:
    return replace(Places(root=folder, catalog=str(folder / "catalog"), catalog_key="slides"), **changes)


def fits_of(name: str, scale: Scale, folder: Path, seed: int = 0) -> dict[str, Fit]:
    return plan_fits(read_experiment(name, scale), places_in(folder), seed)


def test_the_experiments_are_those_of_the_paper() -> None:
    assert experiment_names() == sorted(
        ["table1", "table2", "table3", "table4", "table7", "fig1", "fig3", "fig5", "fig6", "tp53"]
    )
    runs = {name: len(read_experiment(name, "paper").runs) for name in experiment_names()}
    assert runs["table2"] == 7
    assert runs["table3"] == 4
    assert runs["table4"] == 5
    assert runs["table7"] == 1 + 3 * 2, "DINO, and DINOv2 with three rates and two decays"
    assert len(read_experiment("fig5", "paper").models) == 17 + 1, "all vit-small, and the colour histogram"


@pytest.mark.parametrize("scale", SCALES)
def test_what_takes_in_the_runs_of_others_comes_after_them(scale: Scale) -> None:
    order = running_order(scale)
    assert sorted(order) == experiment_names()
    for name in order:
        assert all(order.index(other) < order.index(name) for other in read_experiment(name, scale).also)


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_what_is_expected_and_published_names_rows(name: str, scale: Scale) -> None:
    experiment = read_experiment(name, scale)
    rows = {run.name for run in experiment.runs if run.row} | {model.name for model in experiment.models} | {RANDOM}
    expected = yaml.safe_load((EXPERIMENTS / name / "experiment.yaml").read_text()).get("expected", [])
    at_some_scale = {one for other in SCALES for one in read_experiment(name, other).expected}
    assert len(at_some_scale) == len(expected), "a name in it is no row at either scale"
    for number in experiment.published:
        assert 0 < number.value < 1
        if scale == "paper" and name.startswith("table"):
            assert number.row in rows | {"Virchow"}, "whose weights are not public"


def test_published_numbers_are_complete() -> None:
    counts = {name: len(read_experiment(name, "paper").published) for name in ("table1", "table2", "table3", "table4")}
    # Table I and VIII: ten models on seven columns, and three numbers of Virchow.
    assert counts == {"table1": 73, "table2": 35, "table3": 25, "table4": 30}


def test_experiments_share_the_runs_that_are_the_same(tmp_path: Path) -> None:
    for same in (
        [
            ("table3", "100 %"),
            ("table4", "inf"),
            ("fig1", "from scratch"),
            ("fig3", "pocket ViT"),
            ("fig5", "pocket ViT"),
            ("fig6", "all patches"),
            ("tp53", "pocket ViT"),
        ],
        # With half of the steps.
        [("table1", "DINO ViT-S8"), ("table2", "{5, 10, 20, 40}x")],
    ):
        assert len({fits_of(name, "pocket", tmp_path)[run].key for name, run in same}) == 1
    everything = [fit.key for name in experiment_names() for fit in fits_of(name, "pocket", tmp_path).values()]
    assert len(set(everything)) > 20
    assert not set(everything) & {
        fit.key for name in experiment_names() for fit in fits_of(name, "pocket", tmp_path, seed=1).values()
    }


def test_what_decides_the_weights_decides_the_folder(tmp_path: Path) -> None:
    experiment = read_experiment("fig1", "pocket")
    first = plan_fits(experiment, places_in(tmp_path), 0)["from scratch"]
    assert plan_fits(experiment, places_in(tmp_path / "elsewhere"), 0)["from scratch"].key == first.key
    for changes in ({"catalog_key": "other slides"}, {"versions": {"ssl-train": "9"}}):
        assert plan_fits(experiment, places_in(tmp_path, **changes), 0)["from scratch"].key != first.key
    other_start = replace(experiment.runs[0], config=with_overrides(experiment.runs[0].config, {"data.batch_size": 8}))
    changed = plan_fits(replace(experiment, runs=(other_start, *experiment.runs[1:])), places_in(tmp_path), 0)
    half_trained = "from half-trained weights"
    assert changed[half_trained].key != plan_fits(experiment, places_in(tmp_path), 0)[half_trained].key


def test_a_run_starts_where_another_one_was(tmp_path: Path) -> None:
    fits = fits_of("fig1", "pocket", tmp_path)
    (text,) = fits["from half-trained weights"].step.files.values()
    start = Path(yaml.safe_load(text)["model"]["init_args"]["init_weights"])
    scratch = fits["from scratch"]
    assert start == scratch.exports / f"step-{scratch.max_steps // 2:08d}"
    config = read_experiment("fig1", "pocket").runs[0].config
    exported_every = config["exports"]["every_n_epochs"] * config["model"]["init_args"]["epoch_size"]
    exported_every /= config["data"]["batch_size"]
    assert scratch.max_steps / 2 % exported_every == 0, "there is an export at half of the steps"
    second = fits_of("table1", "paper", tmp_path)["DINO ViT-B8"]
    (text,) = second.step.files.values()
    assert yaml.safe_load(text)["model"]["init_args"]["init_weights"].endswith("/checkpoints/last.ckpt")


@pytest.mark.parametrize("scale", SCALES)
def test_planned_configs_parse(
    scale: Scale, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every config of the paper's scale; of the pocket's, which differ less, the last one of each experiment."""
    planned = [(name, run, fit) for name in experiment_names() for run, fit in fits_of(name, scale, tmp_path).items()]
    if scale == "pocket":
        planned = list({name: (name, run, fit) for name, run, fit in planned}.values())
    for name, run, fit in {fit.key: (name, run, fit) for name, run, fit in planned}.values():
        ((path, text),) = fit.step.files.items()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        monkeypatch.setattr(sys, "argv", [*fit.step.words, "--print_config"])
        with pytest.raises(SystemExit) as ended:
            ssl_cli.run()
        assert ended.value.code == 0, run
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["exports"]["folder"] == str(fit.exports)
        assert printed["trainer"]["max_steps"] == fit.max_steps
        if scale == "paper":
            epochs = fit.max_steps * patches_per_step(printed) / 1_280_000
            assert epochs == (120 if name == "fig1" else 100), run


def test_a_mistake_in_a_definition_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import definition

    with pytest.raises(ExperimentError, match="'table9': not known; allowed are fig1, "):
        read_experiment("table9", "pocket")
    with pytest.raises(ExperimentError, match="batch_size is 32 in the recipe"):
        with_overrides({"data": {"batch_size": 32}}, {"data.batch_size.nothing": 1})
    for name in ("pocket.yaml", "paper.yaml"):
        (tmp_path / name).write_bytes((EXPERIMENTS / name).read_bytes())
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "experiment.yaml").write_text("title: x\nsource: y\nrunz: {}\n")
    monkeypatch.setattr(definition, "EXPERIMENTS", tmp_path)
    with pytest.raises(ExperimentError, match="'runz' is not known here; allowed are"):
        read_experiment("wrong", "pocket")
    (tmp_path / "wrong" / "experiment.yaml").write_text("title: x\nruns: {}\n")
    with pytest.raises(ExperimentError, match="'source' is missing beside runs, title"):
        read_experiment("wrong", "pocket")


# What they cost


def test_costs_follow_from_one_measurement() -> None:
    measured = read_throughput(None)
    assert "Table 8" in measured.source
    (run, *_) = read_experiment("table3", "paper").runs
    cost = cost_of(run, measured)
    assert cost.patches == 128_000_000
    assert cost.gpu_hours == pytest.approx(128_000_000 / 91.9 / 3600), "the recipe that was measured"
    assert backbone_parameters(run.config) == pytest.approx(21.67e6, rel=0.01), "timm's vit_small_patch16_224"
    by_name = {one.name: cost_of(one, measured) for one in read_experiment("table1", "paper").runs}
    assert by_name["DINO ViT-B16"].gpu_hours == pytest.approx(4 * cost.gpu_hours, rel=0.05), "twice as wide"
    assert by_name["DINOv2 ViT-L14"].gpus == 16
    cached = {one.name: cost_of(one, measured).cache_gib for one in read_experiment("table4", "paper").runs}
    assert cached["10^6"] == pytest.approx(1e6 * 256 * 256 * 3 / 2 / 2**30)
    assert cached["inf"] == 0


def test_a_run_of_ones_own_tells_its_throughput(tmp_path: Path) -> None:
    (run, *_) = read_experiment("table3", "paper").runs
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run.config))
    logs = tmp_path / "logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,images_per_second\n10,400\n20,\n30,500\n40,600\n")
    cost = cost_of(run, read_throughput(tmp_path))
    assert cost.gpu_hours == pytest.approx(128_000_000 / 500 / 3600)
    with pytest.raises(ExperimentError, match="has to be the folder of a run, or a YAML file with recipe"):
        read_throughput(EXPERIMENTS / "pocket.yaml")
    (logs / "metrics.csv").write_text("step\n10\n")
    with pytest.raises(ExperimentError, match=r"no images_per_second in logs/\*/metrics.csv"):
        read_throughput(tmp_path)


def test_the_plan_names_configs_hours_and_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "table1", "--scale", "paper", "--plan", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for words in ("preservation == 'FFPE'", "where: null", "GPU hours", "GiB", "by 91.9 images/s", "on 2 machines"):
        assert words in said
    configs = sorted((tmp_path / "paper" / "runs").glob("*/run.yaml"))
    assert len(configs) == 10, "two phases of five models"
    assert all(str(path) in said for path in configs)


# What is missing


def test_missing_data_is_told_with_its_public_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--scale", "paper", "--output", str(tmp_path / "out")]
    assert main(["run", "fig3", *output, "--data", str(tmp_path)]) == 2
    assert "CoNSeP" in capsys.readouterr().err
    assert main(["run", "fig5", *output, "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in said
    assert "--data" in said
    assert main(["run", "tp53", *output, "--data", str(tmp_path)]) == 2
    assert "https://gdc.cancer.gov/about-data/publications/pancanatlas" in capsys.readouterr().err


def test_missing_slides_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "bach").mkdir(parents=True)
    catalog = tmp_path / "nowhere"
    arguments = ["run", "table7", "--scale", "paper", "--data", str(tmp_path), "--catalog", str(catalog)]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"catalog {catalog}: does not exist" in said
    assert "https://portal.gdc.cancer.gov" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "table9"], "not known; allowed are"),
        (["run", "tp53", "--data", "."], "no index.csv there"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--data" in arguments:
        arguments = [*arguments[:1], "table3", "--data", str(tmp_path)]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1


# What they say


def test_painted_nuclei_have_the_papers_classes(tmp_path: Path) -> None:
    import cv2
    import numpy as np

    write_nuclei(tmp_path / "a", images=3, size_px=256, seed=1)
    write_nuclei(tmp_path / "b", images=3, size_px=256, seed=1)
    kinds = set()
    for path in sorted((tmp_path / "a" / "labels").iterdir()):
        labels, image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), cv2.imread(str(path).replace("labels", "images"))
        assert image.mean(axis=2)[labels > 0].mean() < image.mean(axis=2)[labels == 0].mean() - 30, "nuclei are dark"
        kinds |= set(np.unique(labels).tolist())
        assert path.read_bytes() == (tmp_path / "b" / "labels" / path.name).read_bytes()
    assert kinds == set(range(len(CLASSES)))
    with (tmp_path / "a" / "index.csv").open() as file:
        assert [row["split"] for row in csv.DictReader(file)] == ["train", "train", "test"]


def test_made_up_patients_give_both_classes_of_tp53(tmp_path: Path) -> None:
    from fm_eval.cli import main as fm_eval

    rows = [
        "id,file,patient,hospital",
        *(f"slide_{n:02d},slide_{n:02d}.svs,patient_{n * 3 // 4:02d},h" for n in range(20)),
    ]
    (tmp_path / "slides.csv").write_text("\n".join(rows) + "\n")
    write_patients(tmp_path / "slides.csv", tmp_path / "columns.csv")
    tables = tmp_path / "mutations.maf", tmp_path / "copy_number.txt"
    write_cohort_tables(tmp_path / "columns.csv", *tables)
    output = tmp_path / "patients.csv"
    words = ["tp53", f"--mutations={tables[0]}", f"--copy_number={tables[1]}", f"--output={output}"]
    assert fm_eval(words) == 0
    with output.open() as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert min(labels.count("aberrated"), labels.count("functional")) >= 5, "five folds need as many patients of each"


def test_sample_material_is_named_by_its_settings(tmp_path: Path) -> None:
    material = Material(scale="pocket", root=tmp_path)
    assert material.is_sample
    assert material.catalog == str(tmp_path / "data" / material.catalog_key / "catalog")
    own = Material(scale="pocket", root=tmp_path, slides=("s3://bucket",))
    assert not own.is_sample
    assert own.catalog != material.catalog
    with pytest.raises(ExperimentError, match="allowed are tissue_20x, tissue_10x, tissue_5x"):
        material.sample_task("tissue_1x")


# That their configs train, and can be stopped
