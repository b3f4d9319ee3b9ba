"""What would be run at paper scale, and does each of its configs train?

``print_plan`` writes every run's config, as `ssl-train fit` takes it, and prints what is done in which order, how many
GPU hours and how much disk it takes and by whose measurement. ``smoke`` trains two steps of each config with a tiny
network on painted slides: everything of it is as in the config but its size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from job_steps import run_command, say

from experiments.costs import Throughput, cost_of
from experiments.definition import Experiment, Run, with_overrides
from experiments.material import Material
from experiments.planning import Places, plan_fits, run_config
from experiments.working import alone

# What makes a config of any size train on a CPU in seconds.
_SMALL: dict[str, Any] = {
    "data.batch_size": 4,
    "data.num_workers": 0,
    "trainer.max_steps": 2,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.strategy": "auto",
    "trainer.precision": "32-true",
    "model.init_args.init_weights": None,
    "model.init_args.epoch_size": 4,
    "model.init_args.warmup_epochs": 1,
    "model.init_args.warmup_teacher_temp_epochs": 1,
    "data.stream.init_args.where": None,
}
_HEAD = {"out_dim": 64, "hidden_dim": 64, "bottleneck_dim": 16}


def print_plan(experiment: Experiment, places: Places, measured: Throughput, *, seeds: int) -> None:
    """Write the configs and say what running them takes.

    Args:
        experiment: at either scale.
        places: of this machine; nothing has to exist.
        measured: what the hours come from.
        seeds: training seeds.
    """
    say(f"{experiment.name}: {experiment.title} ({experiment.source}, {experiment.scale} scale, {seeds} seed(s))")
    hours, disk, seen = 0.0, 0.0, set()
    print(
        f"slides: {places.catalog}, read where they lie; `online-patching info --catalog` tells its size, at most 5 "
        "bytes a stored tile"
    )
    for seed in range(seeds):
        fits = plan_fits(experiment, places, seed)
        for run in experiment.runs:
            fit = fits[run.name]
            if fit.key in seen:
                continue
            seen.add(fit.key)
            for path, text in fit.step.files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            cost = cost_of(run, measured)
            hours, disk = hours + cost.gpu_hours, disk + cost.gib
            start = "" if run.start is None else f", from {run.start.run!r}"
            print(f"\n{run.name}, seed {seed}: {run.recipe}{start}")
            for name, value in run.changes.items():
                print(f"  {name}: {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
            print(f"  {' '.join(fit.step.words)}")
            if fit.machines > 1:
                print(f"  on {fit.machines} machines, by torchrun or SLURM, as the head of configs/{run.recipe} shows")
            print(
                f"  {cost.patches:,} patches on {cost.gpus} GPU(s): {cost.gpu_hours:,.0f} GPU hours, "
                f"{cost.gpu_hours / cost.gpus:,.0f} hours; disk {cost.gib:.1f} GiB "
                f"(checkpoint {cost.checkpoint_gib:.1f}, exports {cost.exports_gib:.1f}, cached {cost.cache_gib:.1f})"
            )
    tasks = ", ".join(dict.fromkeys([*experiment.tasks, *experiment.curves]))
    print(
        f"\nevaluated on {tasks}"
        + (f"; beside {len(experiment.models)} models as they are" if experiment.models else "")
    )
    print(
        f"in all {hours:,.0f} GPU hours and {disk:,.1f} GiB, by {measured.images_per_second:g} images/s of one GPU: "
        f"{measured.source}"
    )


def smoke_config(run: Run) -> dict[str, Any]:
    """A run's config with a tiny network, four patches a step and two steps."""
    arguments = run.config["model"]["init_args"]
    is_dinov2 = run.config["model"]["class_path"].endswith("DINOv2")
    changes = dict(_SMALL)
    if "num_nodes" in run.config["trainer"]:
        changes["trainer.num_nodes"] = 1
    changes["model.init_args.architecture_kwargs"] = {
        **(arguments.get("architecture_kwargs") or {}),
        "depth": 2,
        "embed_dim": 48,
        "num_heads": 3,
    }
    if is_dinov2:
        for head in ("dino_head", "ibot_head"):
            if arguments.get(head) is not None:
                changes[f"model.init_args.{head}"] = _HEAD
    else:
        changes |= {f"model.init_args.{'' if name == 'out_dim' else 'head_'}{name}": n for name, n in _HEAD.items()}
    if "global_batch_size" in run.config["data"]:
        changes["data.global_batch_size"] = 4
    if "patch_cache" in str(run.config["data"]["stream"]["init_args"].get("cache")):
        changes["data.stream.init_args.distinct_patches"] = 6
    return with_overrides(run.config, changes)


def smoke(experiment: Experiment, output: Path, lock: int) -> None:
    """Train two steps of every run of an experiment, on the painted slides of the pocket scale.

    Args:
        experiment: at paper scale.
        output: folder of the experiments.
        lock: descriptor that the commands inherit.
    """
    material = Material(scale="pocket", root=output / "pocket")
    with alone(material.root) as slides_lock, material.slides_within_reach(slides_lock):
        for run in experiment.runs:
            folder = output / "smoke" / experiment.name / run.name.replace("/", "-").replace(" ", "_")
            small = Run(name=run.name, recipe=run.recipe, config=smoke_config(run))
            config = with_overrides(
                run_config(small, seed=0, catalog=material.catalog),
                {"trainer.default_root_dir": str(folder), "exports.folder": str(folder / "exports")},
            )
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
            run_command("ssl-train", "fit", "--config", folder / "run.yaml", keep_open=[lock])
    print(f"{experiment.name}: two steps of {len(experiment.runs)} runs -> {output / 'smoke' / experiment.name}")
