"""The numbers of the presets, against what the paper says, and the comparison with a run."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from ssl_train import DINO, MultiCrop, presets
from ssl_train.presets import EPOCHS, PATCHES_PER_STEP, differences, flatten, recipe

CONFIGS = Path(__file__).parents[3] / "configs" / "ssl"
# Patches per GPU, GPUs, and what the learning rate is a tenth of.
PAPER = {
    "vits16": ("vit_small_patch16_224", 256, 4, 5e-4),
    "vits8": ("vit_small_patch8_224", 64, 4, 5e-4),
    "vitb16": ("vit_base_patch16_224", 128, 4, 7.5e-4),
    "vitb8": ("vit_base_patch8_224", 32, 8, 5e-4),
}


def as_run(config: dict) -> dict:
    model, data, trainer = config["model"]["init_args"], config["data"], config["trainer"]
    per_step = data["batch_size"] * trainer["devices"] * trainer.get("accumulate_grad_batches", 1)
    # What the config leaves to the defaults.
    given = inspect.signature(DINO).parameters
    model = {name: parameter.default for name, parameter in given.items()} | model
    crops = {name: parameter.default for name, parameter in inspect.signature(MultiCrop).parameters.items()}
    model["crops"] = {"init_args": crops | model["crops"]["init_args"]}
    follows = presets.derived(max_steps=trainer["max_steps"], patches_per_step=per_step, epoch_size=model["epoch_size"])
    return flatten({"model": {"init_args": model}, "data": data}) | follows


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize("name", PAPER)
def test_shipped_configs_are_the_recipe_of_the_paper(name: str, phase: int) -> None:
    architecture, per_gpu, gpus, published = PAPER[name]
    path = CONFIGS / (f"dino_{name}.yaml" if phase == 1 else f"dino_{name}_phase2.yaml")
    config = yaml.safe_load(path.read_text())
    model, stream = config["model"]["init_args"], config["data"]["stream"]["init_args"]
    assert config["preset"] == ("kaiko" if phase == 1 else "kaiko-phase2")
    assert model["architecture"] == architecture
    # Section IV-C.
    assert (config["data"]["batch_size"], config["trainer"]["devices"]) == (per_gpu, gpus)
    assert config["data"]["global_batch_size"] == per_gpu * gpus
    assert differences(config["preset"], architecture, as_run(config)) == []
    assert model["base_learning_rate"] == pytest.approx(published / 10 / phase)
    assert stream["size_px"] == 256
    assert stream["min_foreground"] == 0.4
    assert [10 / mpp for mpp in stream["mpp"]] == [5, 10, 20, 40]
    assert model["crops"]["init_args"]["mean"] == model["crops"]["init_args"]["std"] == [0.5, 0.5, 0.5]
    assert config["trainer"]["max_steps"] * per_gpu * gpus == 100 * 1_280_000
    # Phase 2 starts from what phase 1 leaves, on other slides.
    if phase == 2:
        first = yaml.safe_load((CONFIGS / f"dino_{name}.yaml").read_text())
        assert model["init_weights"] == f"{first['trainer']['default_root_dir']}/checkpoints/last.ckpt"
        assert stream["catalog"] != first["data"]["stream"]["init_args"]["catalog"]
        assert config["trainer"]["default_root_dir"] != first["trainer"]["default_root_dir"]
    else:
        assert model["init_weights"] == f"{architecture}.dino"


def test_kaiko_names_what_it_changes_of_the_published_recipe() -> None:
    changed = {d.path.split(".")[-1]: (d.theirs, d.ours) for d in presets.deviations("kaiko", "vit_base_patch16_224")}
    assert changed["base_learning_rate"] == (7.5e-4, pytest.approx(7.5e-5))
    assert changed["mean"] == ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
    assert changed[EPOCHS] == (400, 100)
    assert changed[PATCHES_PER_STEP] == (1024, 512)
    assert set(changed) == {
        *("init_weights", "base_learning_rate", "size_px", "min_foreground", "mpp", "mean", "std", "epoch_size"),
        *(EPOCHS, PATCHES_PER_STEP),
    }
    assert all(d.source.startswith("paper, section IV-C") for d in presets.deviations("kaiko", "vit_base_patch16_224"))
    assert presets.deviations("meta", "vit_base_patch16_224") == []
    second = presets.deviations("kaiko-phase2", "vit_small_patch8_224")
    assert [(d.theirs, d.ours) for d in second] == [(pytest.approx(5e-5), pytest.approx(2.5e-5))]


def test_a_run_is_told_what_it_changes() -> None:
    run = {path: setting.value for path, setting in recipe("kaiko", "vit_small_patch16_224").items()}
    assert differences("kaiko", "vit_small_patch16_224", run) == []
    # Lists of a YAML are tuples of a recipe, and rounding is no difference.
    run["model.init_args.crops.init_args.mean"] = [0.5, 0.5, 0.5]
    run["model.init_args.base_learning_rate"] = 5.00000001e-5
    assert differences("kaiko", "vit_small_patch16_224", run) == []
    run |= {"model.init_args.clip_grad": 3.0, PATCHES_PER_STEP: 64, "model.init_args.init_weights": None}
    found = {d.path.split(".")[-1]: (d.theirs, d.ours) for d in differences("kaiko", "vit_small_patch16_224", run)}
    assert found == {"clip_grad": (0.0, 3.0), PATCHES_PER_STEP: (1024, 64), "init_weights": ("given", None)}
    text = presets.report("kaiko", "vit_small_patch16_224", run)
    assert "  base_learning_rate: 0.0005 -> 5e-05  [paper, section IV-C (ii): a tenth]" in text
    assert "this run differs from kaiko in" in text
    assert "  clip_grad: 0 -> 3" in text.splitlines()


def test_every_setting_has_a_source() -> None:
    for name in ("meta", "kaiko", "kaiko-phase2"):
        for architecture, *_ in PAPER.values():
            assert all(setting.source for setting in recipe(name, architecture).values())


def test_presets_and_architectures_without_a_recipe_are_refused() -> None:
    with pytest.raises(ValueError, match=r"preset 'nope': none of meta, kaiko, kaiko-phase2"):
        recipe("nope", "vit_small_patch16_224")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no recipe for architecture 'vit_tiny_patch16_224'"):
        recipe("kaiko", "vit_tiny_patch16_224")
