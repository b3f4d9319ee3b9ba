"""How does a small vision transformer get better while it trains on slides, from scratch and from a half-trained model?

    python tools/learning_curves.py --slides FOLDER ... --mpp ID=VALUE --labels FOLDER --seeds 3 --output curves

The pocket-scale analogue of the paper's Fig. 1. For every seed one run starts from random weights; a second one of the
same length starts from what the first was at half its way. Both export the teacher several times, and each export is
measured on labelled patches: k-NN and linear probe (balanced accuracy on test), ODCorr and RankMe, beside the initial
model and a colour histogram. Leaves `curves.json` and `curves.svg`, and says which expectations hold. What was finished
is used again when the command is repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import yaml
from fm_eval import (
    EmbeddedDataset,
    EmbedSettings,
    FmEvalError,
    PatchDataset,
    embed_images,
    get_protocol,
    load_backbone,
    load_dataset,
    odcorr,
    rankme,
    run_knn,
    run_probe,
)
from panel_plot import Panel, Series, render

REPOSITORY = Path(__file__).resolve().parent.parent
PROTOCOL = "paper-standardized"
SCRATCH, HALF = "from scratch", "from half-trained"
INITIAL, COLOUR = "initial model", "colour histogram"
# Of a run, beside its start: even, so that one of them is half the way.
_EXPORTS = 4
# By how much a loss has fallen away from that of the uniform answer, nats.
_AWAY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one model reaches on the labelled patches.

    Attributes:
        images: patches that it was trained on.
        knn: balanced accuracy on test of 20 nearest neighbours.
        probe: balanced accuracy on test of the linear probe.
        odcorr: off-diagonal correlation over all patches.
        rankme: smooth rank of the embeddings of all patches.
    """

    images: int
    knn: float
    probe: float
    odcorr: float
    rankme: float


QUANTITIES = {"knn": "k-NN", "probe": "linear probe", "odcorr": "ODCorr", "rankme": "RankMe"}


def main() -> int:
    """Trains, measures, draws; returns the exit code."""
    arguments = _parse()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(arguments.config.read_text())
    steps = arguments.steps or int(config["trainer"]["max_steps"])
    batch = int(config["data"]["batch_size"])
    try:
        options = [f"--mpp={value}" for value in arguments.mpp]
        _run("online-patching", "index", *arguments.slides, "--catalog", output / "catalog", *options, "--foreground")
        labelled = load_dataset(arguments.labels)
        readings: dict[str, list[list[Reading]]] = {SCRATCH: [], HALF: []}
        for seed in range(arguments.seeds):
            scratch, half = (output / f"seed_{seed}" / name for name in ("scratch", "half"))
            given = _settings(arguments, seed=seed, steps=steps, patches=steps * batch)
            _train(scratch, given)
            readings[SCRATCH].append(_measured(scratch, labelled, batch=batch))
            middle = _exports(scratch)[_EXPORTS // 2]
            _train(half, [*given, f"--model.init_args.init_weights={middle}"], start=middle)
            readings[HALF].append(_measured(half, labelled, batch=batch))
        colour = _measure("fm_eval.ColourHistogram", labelled, images=0)
    except subprocess.CalledProcessError as error:
        print(f"learning_curves: `{shlex.join(error.cmd)}` ended with exit code {error.returncode}", file=sys.stderr)
        return 2
    except FmEvalError as error:
        print(f"learning_curves: {error}", file=sys.stderr)
        return 2
    losses = [cross_entropies(output / f"seed_{seed}" / "scratch") for seed in range(arguments.seeds)]
    log_prototypes = math.log(_prototypes(config))
    found = expectations(readings, colour, losses, log_prototypes=log_prototypes)
    result = {
        "format_version": 1,
        "config": arguments.config.name,
        "steps": steps,
        "batch_size": batch,
        "probe": PROTOCOL,
        "readings": {name: [[asdict(r) for r in run] for run in runs] for name, runs in readings.items()},
        "colour_histogram": asdict(colour),
        "cross_entropy": losses,
        "ln_prototypes": log_prototypes,
        "expectations": found,
    }
    (output / "curves.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "curves.svg").write_text(draw(readings, colour))
    for line in found:
        print(line)
    print(f"{output / 'curves.json'}\n{output / 'curves.svg'}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", nargs="+", required=True, help="slides or folders of slides, local or URL")
    parser.add_argument("--mpp", action="append", default=[], help="um/px of slides that state none: VALUE or ID=VALUE")
    parser.add_argument("--labels", type=Path, required=True, help="labelled patches: folder with index.csv")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "ssl" / "real_small.yaml")
    parser.add_argument("--steps", type=int, help="of each run, in place of the config's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("curves"))
    arguments = parser.parse_args()
    if arguments.seeds < 1 or (arguments.steps is not None and arguments.steps < _EXPORTS):
        parser.error(f"--seeds {arguments.seeds}, --steps {arguments.steps}: at least 1 and {_EXPORTS} needed")
    return arguments


def _settings(arguments: argparse.Namespace, *, seed: int, steps: int, patches: int) -> list[object]:
    """Options common to all runs of a seed; the recipe's epoch is a tenth of the run."""
    return [
        "--config",
        arguments.config,
        f"--seed_everything={seed}",
        f"--data.stream.init_args.catalog={arguments.output / 'catalog'}",
        f"--data.stream.init_args.seed={seed}",
        f"--trainer.max_steps={steps}",
        f"--model.init_args.epoch_size={max(1, patches // 10)}",
        f"--exports.every_n_epochs={10 / _EXPORTS}",
        "--trainer.log_every_n_steps=1",
    ]


def _train(run: Path, settings: Sequence[object], *, start: Path | None = None) -> None:
    """Trains once: a run that ended with the same settings is not repeated.

    Args:
        run: its folder.
        settings: options of ssl-train.
        start: checkpoint folder that it starts from; the seeded random weights where absent.
    """
    finished, wanted = run / "finished", shlex.join(str(setting) for setting in settings)
    if finished.exists() and finished.read_text() == wanted:
        return
    shutil.rmtree(run, ignore_errors=True)
    first = run / "exports" / "step-00000000"
    if start is None:
        _run("ssl-train", "export", *settings, "--output", first)
    else:
        shutil.copytree(start, first)
    _run("ssl-train", "fit", *settings, f"--exports.folder={run / 'exports'}", f"--trainer.default_root_dir={run}")
    finished.write_text(wanted)


def _exports(run: Path) -> list[Path]:
    """Checkpoint folders in the order of their steps; the first is the start."""
    return sorted(path.parent for path in (run / "exports").glob("step-*/backbone.json"))


def _measured(run: Path, labelled: PatchDataset, *, batch: int) -> list[Reading]:
    """Readings of a run's exports; what was measured before is kept beside the weights, and copied with them."""
    readings = []
    for folder in _exports(run):
        images, known = batch * int(folder.name.removeprefix("step-")), folder / "reading.json"
        if not known.exists():
            known.write_text(json.dumps(asdict(_measure(str(folder), labelled, images=images))))
        readings.append(replace(Reading(**json.loads(known.read_text())), images=images))
        print(f"{folder}: {readings[-1]}", flush=True)
    return readings


def _measure(backbone: str, labelled: PatchDataset, *, images: int) -> Reading:
    embeddings = embed_images(labelled.images, load_backbone(backbone), EmbedSettings(threads=2))
    data = EmbeddedDataset(
        embeddings=embeddings,
        labels=labelled.labels,
        groups=labelled.table["group_id"].to_numpy(dtype=str),
        rows={split: labelled.rows(split) for split in ("train", "val", "test")},
        classes=len(labelled.classes),
    )
    return Reading(
        images=images,
        knn=run_knn(data, k=20, temperature=0.07, seed=0).majority["test"].mean,
        probe=run_probe(get_protocol(PROTOCOL), data, seed=0).scores["test"].mean,
        odcorr=_value(odcorr(embeddings).metric.value),
        rankme=_value(rankme(embeddings).value),
    )


def _value(number: float | None) -> float:
    return math.nan if number is None else number


def cross_entropies(run: Path) -> list[float]:
    """Mean cross-entropy between teacher and student over the pairs of views, by logged step.

    It is DINO's loss; of DINOv2's it is the sum of two terms. Either starts near ln K.
    """
    (table,) = sorted((run / "logs").glob("version_*/metrics.csv"))[-1:]
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("loss")]
    terms = ("dino_global_crops_loss", "dino_local_crops_loss")
    return [sum(float(row[term]) for term in terms) if terms[0] in row else float(row["loss"]) for row in rows]


def _prototypes(config: dict[str, Any]) -> int:
    settings = config["model"]["init_args"]
    return int(settings["out_dim"] if "out_dim" in settings else settings["dino_head"]["out_dim"])


def expectations(
    readings: dict[str, list[list[Reading]]],
    colour: Reading,
    losses: Sequence[Sequence[float]],
    *,
    log_prototypes: float,
) -> list[str]:
    """What was expected of the curves, and whether it is so; "ahead" is by twice the larger standard deviation."""
    scratch, half = readings[SCRATCH], readings[HALF]
    lines = []
    for name in ("knn", "probe"):
        first, last = ([getattr(run[at], name) for run in scratch] for at in (0, -1))
        lines.append(
            f"{QUANTITIES[name]}: trained {_estimate(last)} against initial {_estimate(first)}: " + _ahead(last, first)
        )
        middle = (
            [getattr(run[len(run) // 2], name) for run in scratch],
            [getattr(run[len(run) // 2], name) for run in half],
        )
        lines.append(
            f"{QUANTITIES[name]} at half the steps: from half-trained {_estimate(middle[1])} against from scratch "
            f"{_estimate(middle[0])}: " + _ahead(middle[1], middle[0])
        )
        lines.append(f"{QUANTITIES[name]} of the colour histogram: {getattr(colour, name):.3f}")
    rises = sum(run[-1].rankme > run[1].rankme for run in scratch)
    lines.append(f"RankMe rises from the first export to the last in {rises} of {len(scratch)} runs from scratch")
    ends = [fmean(run[-max(1, len(run) // 10) :]) for run in losses]
    away = sum(end < log_prototypes - _AWAY for end in ends)
    lines.append(
        f"the cross-entropy ends at {_estimate(ends)}, more than {_AWAY} below ln K = {log_prototypes:.2f} "
        f"in {away} of {len(ends)} runs"
    )
    return lines


def _estimate(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _ahead(ours: Sequence[float], theirs: Sequence[float]) -> str:
    if len(ours) < 2:
        return "one seed, no spread to judge by"
    margin = 2 * max(stdev(ours), stdev(theirs))
    difference = fmean(ours) - fmean(theirs)
    return "ahead" if difference >= margin else "behind" if difference <= -margin else "no clear difference"


def draw(readings: dict[str, list[list[Reading]]], colour: Reading) -> str:
    """The four quantities over the patches seen, mean and standard deviation over seeds."""
    panels = []
    seen = [reading.images for reading in readings[SCRATCH][0]]
    for quantity, title in QUANTITIES.items():
        series = [_series(name, runs, quantity) for name, runs in readings.items()]
        start = fmean(getattr(run[0], quantity) for run in readings[SCRATCH])
        levels = {INITIAL: start}
        if quantity in ("knn", "probe"):
            levels[COLOUR] = getattr(colour, quantity)
        ends = [seen[0], seen[-1]]
        series += [Series(name=n, x=ends, y=[y, y], joined=True, hollow=True) for n, y in levels.items()]
        label = "balanced accuracy on test" if quantity in ("knn", "probe") else title
        panels.append(Panel(title=title, x_label="patches seen in this run", y_label=label, series=series))
    return render(panels, title="Learning curves")


def _series(name: str, runs: Sequence[Sequence[Reading]], quantity: str) -> Series:
    values = np.array([[getattr(reading, quantity) for reading in run] for run in runs])
    spread = values.std(0, ddof=1).tolist() if len(values) > 1 else []
    return Series(name=name, x=[r.images for r in runs[0]], y=values.mean(0).tolist(), spread=spread, joined=True)


def _run(program: str, *arguments: object) -> None:
    words = [str(Path(sys.executable).parent / program), *(str(argument) for argument in arguments)]
    print(f"\n==> {shlex.join([program, *words[1:]])}", flush=True)
    subprocess.run(words, check=True)


if __name__ == "__main__":
    sys.exit(main())
