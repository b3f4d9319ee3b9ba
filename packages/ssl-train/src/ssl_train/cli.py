"""How is training driven from a YAML file?

`ssl-train fit --config x.yaml` trains; `ssl-train export --config x.yaml --output FOLDER` writes a
checkpoint folder from a checkpoint or, without one, from the seeded initial weights. Mistakes of the user
end in one line on stderr.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger

from ssl_train.callbacks import CollapseMonitor, StageProgressBar, StepCheckpoint, Throughput
from ssl_train.checkpoint import export_folder, load_training_checkpoint
from ssl_train.data import PatchData
from ssl_train.dino import DINO

_SECRET = re.compile(r"key|secret|token|password|credential|connection_string|sas|auth", re.IGNORECASE)
_MASK = "***"
# Errors that no config, file or stream causes: they show their traceback. Everything else is one line.
_BUGS = (AssertionError, AttributeError, IndexError, KeyError, NameError, NotImplementedError, TypeError)


class SSLTrainer(pl.Trainer):
    """Lightning's trainer with the subcommand `export`."""

    def export(
        self,
        model: pl.LightningModule,
        *,
        output: str,
        ckpt_path: str | None = None,
    ) -> None:
        """Write a checkpoint folder with the teacher's backbone.

        Args:
            model: the model of the config.
            output: folder to write.
            ckpt_path: Lightning checkpoint of this config; the seeded initial weights where absent.
        """
        raise AssertionError("SSLCLI.export does the work: it knows the config")


class MaskedSaveConfig(SaveConfigCallback):
    """Saves the config of the run to `config.yaml` in the run folder, without credentials."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: pl.Trainer, *_: Any) -> None:
        """Writes the masked config; the run folder is the trainer's `default_root_dir`."""
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_validation=True))
        target = Path(trainer.default_root_dir) / "config.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(mask_secrets(dumped), sort_keys=False))


def mask_secrets(config: Any, *, inside_storage_options: bool = False) -> Any:
    """The config with every credential-like value under `*storage_options` replaced by `***`."""
    if isinstance(config, list):
        return [mask_secrets(item, inside_storage_options=inside_storage_options) for item in config]
    if not isinstance(config, dict):
        return config
    masked = {}
    for name, value in config.items():
        inside = inside_storage_options or str(name).endswith("storage_options")
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
        parser.add_lightning_class_args(StepCheckpoint, "checkpoints")
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_as_seed)

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; an export needs no data."""
        if self.subcommand != "export":
            super().instantiate_classes()
            return
        config = self.config.export
        self._mpp = _configured_mpp(config.get("data"))
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(pl.LightningModule, "model", subclass_mode=True)
        self.model = parser.instantiate_classes(parser.parse_object({"model": config.model})).model
        self.datamodule = None
        self.config_init = self.config
        self.trainer = SSLTrainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the logger: `logs/version_N/metrics.csv` in the run folder, a new N for every start."""
        trainer_config = self._get(self.config_init, "trainer")
        if trainer_config.get("logger") in (None, True):
            kwargs["logger"] = CSVLogger(save_dir=trainer_config.get("default_root_dir") or ".", name="logs")
        return super().instantiate_trainer(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """Checks the file only: checkpoints hold no hyperparameters, the config says everything."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and Path(path).is_file() and not zipfile.is_zipfile(path):
            raise ValueError(f"checkpoint {path}: not a checkpoint, or cut short; give one that fit has written")

    def export(self, *, model: DINO, output: str, ckpt_path: str | None) -> None:
        """Writes the checkpoint folder."""
        step = load_training_checkpoint(model, ckpt_path) if ckpt_path else 0
        folder = export_folder(model, output, step=step, mpp=self._mpp)
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


def run() -> SSLCLI:
    """Parses and runs the command of `sys.argv`; raises what goes wrong."""
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
        parser_kwargs={
            "exit_on_error": False,
            "fit": {"exit_on_error": False},
            "export": {"exit_on_error": False},
        },
    )


def main() -> None:
    """Entry point of the console script."""
    # Lightning's advice on loaders and devices does not concern a user of a YAML; the progress bar reports
    # the run.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
    for category in (FutureWarning, PossibleUserWarning):
        warnings.filterwarnings("ignore", category=category, module="(pytorch_lightning|lightning_fabric)")
    try:
        run()
    except KeyboardInterrupt:
        print("ssl-train: interrupted", file=sys.stderr)
        sys.exit(130)
    except _BUGS:
        raise
    except Exception as error:
        print(f"ssl-train: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def one_line(error: BaseException) -> str:
    """The message as one line, without jsonargparse's dump of the config or a worker's traceback."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1]
    text = " ".join(message.split())
    cause = re.search(r"Errors: - (.*?) - Expected a <class 'NoneType'> Given value", text)
    return cause.group(1) if cause else text
