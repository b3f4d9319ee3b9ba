"""How is training driven from a YAML file?

`ssl-train fit --config x.yaml` trains; `ssl-train export --config x.yaml --output FOLDER` writes a
checkpoint folder from a checkpoint or, without one, from the seeded initial weights; `ssl-train convert` (module
`convert`) needs no config. Mistakes of the user end in one line on stderr. A run that SIGTERM ended exits with 143 and
one that Ctrl-C ended with 130, so that nothing takes it for a finished one.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import yaml
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ssl_train import convert, presets
from ssl_train.callbacks import StageProgressBar, Throughput
from ssl_train.checkpoint import export_folder, load_training_checkpoint
from ssl_train.data import PatchData
from ssl_train.dino import DINO
from ssl_train.dinov2 import DINOv2
from ssl_train.event_file import EventFileLogger
from ssl_train.garbage import GarbageCollection
from ssl_train.guard import EmbeddingGuard
from ssl_train.head_warmup import HeadWarmup
from ssl_train.monitors import CollapseMonitor, NonFiniteGradients
from ssl_train.preflight import RunChecks
from ssl_train.saving import FolderExport, StepCheckpoint, StopOnSignal, checkpoint_folder
from ssl_train.sharding import FullySharded

_SECRET = re.compile(r"key|secret|token|password|credential|connection_string|sas|auth", re.IGNORECASE)
_MASK = "***"
# As a shell reports a process that the signal ended.
_SIGTERM_EXIT = 128 + signal.SIGTERM
# Errors that no config, file or stream causes: they show their traceback. Everything else is one line.
_BUGS = (AssertionError, AttributeError, IndexError, KeyError, NameError, NotImplementedError, TypeError)


# Callbacks of every run, by the section of the config that sets them.
_CONFIGURED: dict[str, type[pl.Callback]] = {
    "checkpoints": StepCheckpoint,
    "collapse": CollapseMonitor,
    "non_finite": NonFiniteGradients,
    "guard": EmbeddingGuard,
    "head_warmup": HeadWarmup,
    "exports": FolderExport,
    "garbage_collection": GarbageCollection,
}


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
        """One seed for everything, the preset that the run is held against, and the callbacks with settings."""
        parser.add_argument(
            "--preset",
            type=presets.PresetName | None,
            default=None,
            help="recipe whose differences from the run are printed at its start",
        )
        for name, callback in _CONFIGURED.items():
            parser.add_lightning_class_args(callback, name)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_as_seed)

    def before_fit(self) -> None:
        """Says what is special about the run, and tells the exports the magnification."""
        config = self.config.fit
        for callback in _callbacks(self.trainer):
            if isinstance(callback, FolderExport):
                callback.mpp = _configured_mpp(config.get("data"))
        if config.preset is not None:
            per_step = self.datamodule.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
            follows = presets.derived(
                max_steps=self.trainer.max_steps,
                patches_per_step=per_step,
                epoch_size=config.model.init_args.epoch_size,
            )
            run = presets.flatten({"model": config.model.as_dict(), "data": config.data.as_dict()}) | follows
            _print_once(presets.report(config.preset, config.model.init_args.architecture, run))

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; an export needs no data."""
        if self.subcommand != "export":
            super().instantiate_classes()
            return
        config = self.config.export
        self._mpp = _configured_mpp(config.get("data"))
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(pl.LightningModule, "model", subclass_mode=True)
        self.model = parser.instantiate(parser.parse_object({"model": config.model})).model
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
        """Adds the loggers: `metrics.csv` and a TensorBoard file in `logs/version_N`, a new N for every start.

        The bar is left out where the config says so.
        """
        trainer_config = self._get(self.config_init, "trainer")
        if trainer_config.get("logger") in (None, True):
            csv = CSVLogger(save_dir=trainer_config.get("default_root_dir") or ".", name="logs")
            kwargs["logger"] = [csv, EventFileLogger(folder=csv.log_dir)]
        if trainer_config.get("enable_progress_bar") is False:
            # Lightning refuses a bar beside it, which no config can take out of the fixed callbacks.
            shown = [c for c in self.trainer_defaults["callbacks"] if not isinstance(c, StageProgressBar)]
            self.trainer_defaults = {**self.trainer_defaults, "callbacks": shown}
        return super().instantiate_trainer(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """Checks the file only: checkpoints hold no hyperparameters, the config says everything."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and Path(path).is_file() and not zipfile.is_zipfile(path):
            raise ValueError(f"checkpoint {path}: not a checkpoint, or cut short; give one that fit has written")
        if self.config.subcommand != "fit" or not path or not Path(path).is_dir():
            return
        strategy = str(self.config.fit.trainer.strategy)
        if FullySharded.__name__ not in strategy:
            raise ValueError(
                f"checkpoint {path}: sharded, but trainer.strategy is {strategy}; take ssl_train.FullySharded, "
                "with any number of devices"
            )

    def export(self, *, model: DINO | DINOv2, output: str, ckpt_path: str | None) -> None:
        """Writes the checkpoint folder."""
        step = load_training_checkpoint(model, ckpt_path) if ckpt_path else 0
        folder = export_folder(model, output, step=step, mpp=self._mpp)
        print(f"exported {model.architecture} at step {step} to {folder}")


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return list(getattr(trainer, "callbacks", []))


@rank_zero_only
def _print_once(text: str) -> None:
    print(text, flush=True)


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
            "callbacks": [RunChecks(), StageProgressBar(), Throughput(), StopOnSignal()],
            "max_epochs": 1,
        },
        save_config_callback=MaskedSaveConfig,
        seed_everything_default=0,
        parser_kwargs={
            "description": "Trains foundation models from a YAML file; `ssl-train convert --help` is about weights.",
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
        if sys.argv[1:2] == ["convert"]:
            print(f"wrote {convert.run(sys.argv[2:])}")
        else:
            ended_by_signal(run())
    except SIGTERMException:
        # Lightning's own, where the signal came before `StopOnSignal` could take it over.
        print("ssl-train: SIGTERM while starting; nothing was saved", file=sys.stderr)
        sys.exit(_SIGTERM_EXIT)
    except KeyboardInterrupt:
        _exit_interrupted()
    except SystemExit as end:
        # Lightning turns Ctrl-C into an exit that looks like any error and says nothing.
        if isinstance(end.__context__, KeyboardInterrupt):
            _exit_interrupted()
        raise
    except _BUGS:
        raise
    except Exception as error:
        print(f"ssl-train: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _exit_interrupted() -> NoReturn:
    print("ssl-train: interrupted; checkpoints hold what was saved before", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def ended_by_signal(cli: SSLCLI) -> None:
    """Exits as a process that a signal ended does, where a run was saved and stopped for it."""
    for callback in _callbacks(cli.trainer):
        if isinstance(callback, StopOnSignal) and callback.stopped_at is not None:
            last = checkpoint_folder(cli.trainer) / "last.ckpt"
            name = "Ctrl-C" if callback.stopped_by == signal.SIGINT else callback.stopped_by.name
            print(
                f"ssl-train: {name}: stopped after step {callback.stopped_at} of {cli.trainer.max_steps}; go on with "
                f"--ckpt_path {last}",
                file=sys.stderr,
            )
            sys.exit(128 + callback.stopped_by)


def one_line(error: BaseException) -> str:
    """The message as one line, without jsonargparse's dump of the config or a worker's traceback."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1]
    text = " ".join(message.split())
    cause = re.search(r"Errors: - (.*?) - Expected a <class 'NoneType'> Given value", text)
    return cause.group(1) if cause else text


if __name__ == "__main__":
    main()
