"""How is training driven from a YAML file?

`ssl-train fit --config x.yaml` trains; `ssl-train export --config x.yaml --output FOLDER` writes a checkpoint folder
from a checkpoint or, without one, from the seeded initial weights. Mistakes of the user end in one line on stderr.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ssl_train.callbacks import CollapseMonitor, StageProgressBar, StepCheckpoint, Throughput
from ssl_train.checkpoint import export_folder, load_training_checkpoint
from ssl_train.data import PatchData
from ssl_train.dino import DINO

_SECRET = re.compile(r"key|secret|token|password|credential|connection_string|sas|auth", re.IGNORECASE)
_MASK = "***"


class SSLTrainer(pl.Trainer):
    """Lightning's trainer with the subcommand `export`."""

    def export(
        self,
        model: pl.LightningModule,
        *,
        output: str,
        ckpt_path: str | None = None,
        input_size_px: int | None = None,
    ) -> None:
        """Write a checkpoint folder with the teacher's backbone.

        Args:
            model: the model of the config.
            output: folder to write.
            ckpt_path: Lightning checkpoint of this config; the seeded initial weights where absent.
            input_size_px: side at which the backbone is to be used; the size of the global crops where absent.
        """
        raise NotImplementedError("SSLCLI.export does the work: it knows the config")


class MaskedSaveConfig(SaveConfigCallback):
    """Saves the config of the run to `config.yaml` in the run folder, without credentials."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the masked config; the run folder is the trainer's `default_root_dir`."""
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_validation=True))
        target = Path(trainer.default_root_dir) / "config.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(mask_secrets(dumped), sort_keys=False))


def mask_secrets(config: Any, *, inside_storage_options: bool = False) -> Any:
    """The config with every credential-like value under a `storage_options` replaced by `***`."""
    if isinstance(config, list):
        return [mask_secrets(item, inside_storage_options=inside_storage_options) for item in config]
    if not isinstance(config, dict):
        return config
    masked = {}
    for name, value in config.items():
        inside = inside_storage_options or name == "storage_options"
        hidden = inside_storage_options and _SECRET.search(str(name)) and value is not None
        masked[name] = _MASK if hidden else mask_secrets(value, inside_storage_options=inside)
    return masked


class SSLCLI(LightningCLI):
    """LightningCLI with this package's model, data and fixed callbacks."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, with the arguments that the CLI itself fills in."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}, "export": {"model"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for everything, and the checkpoint policy."""
        parser.set_defaults({"seed_everything": 0})
        parser.add_lightning_class_args(StepCheckpoint, "checkpoints")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_as_seed)

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; an export needs no data."""
        if self.subcommand != "export":
            super().instantiate_classes()
            return
        data = self.config["export"].pop("data", None)
        self._mpp = _configured_mpp(data)
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the logger, which writes `metrics.csv` into the run folder."""
        trainer_config = self._get(self.config_init, "trainer")
        if trainer_config.get("logger") in (None, True) and self.subcommand == "fit":
            root = trainer_config.get("default_root_dir") or "."
            kwargs["logger"] = CSVLogger(save_dir=root, name="", version="")
        return super().instantiate_trainer(**kwargs)

    def export(self, *, model: DINO, output: str, ckpt_path: str | None, input_size_px: int | None) -> None:
        """Writes the checkpoint folder."""
        step = load_training_checkpoint(model, ckpt_path) if ckpt_path else 0
        folder = export_folder(model, output, step=step, mpp=self._mpp, input_size_px=input_size_px)
        print(f"exported {model.architecture} at step {step} to {folder}")


def _as_seed(seed: Any) -> int:
    return 0 if isinstance(seed, bool) or seed is None else int(seed)


def _configured_mpp(data: Any) -> list[float] | None:
    """The um per pixel that the stream of a config samples, where it says so."""
    if data is None or data.get("stream") is None:
        return None
    mpp = data["stream"].get("init_args", {}).get("mpp")
    if mpp is None:
        return None
    return [float(value) for value in mpp] if isinstance(mpp, Sequence) else [float(mpp)]


def run(args: Sequence[str] | None = None) -> SSLCLI:
    """Parses and runs a command; raises what goes wrong."""
    return SSLCLI(
        model_class=pl.LightningModule,
        subclass_mode_model=True,
        datamodule_class=PatchData,
        trainer_class=SSLTrainer,
        trainer_defaults={
            "callbacks": [StageProgressBar(), Throughput(), CollapseMonitor()],
            "max_epochs": 1,
        },
        save_config_callback=MaskedSaveConfig,
        seed_everything_default=0,
        args=list(args) if args is not None else None,
    )


def main() -> None:
    """Entry point of the console script."""
    # Lightning says how it would like its loaders and devices; a run's own output is the progress bar.
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    try:
        run()
    except KeyboardInterrupt:
        print("ssl-train: interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, MisconfigurationException) as error:
        print(f"ssl-train: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
