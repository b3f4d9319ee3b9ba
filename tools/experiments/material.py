"""Which slides and labelled images does an experiment see?

At pocket scale both are painted (`make_sample_slides`): small slides, served from an S3 store on loopback and indexed
by their URLs; patches of six tissues, as many pixels at 20x, 10x and 5x around the same places; images with the pixels
of their nuclei. Everything lies in a folder named by a digest of the settings that made it. One's own slides
(``--slides``) and labelled patches (``--data``) take their places.

At paper scale slides are indexed where they lie, and the tasks are those of `configs/eval`, below ``--data``.
"""

from __future__ import annotations

import contextlib
import csv
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import yaml
from job_steps import run_command, say, slides_in_bucket
from make_sample_slides import make_patches, make_slides

from experiments.cohort import write_cohort_tables, write_patients
from experiments.definition import CONFIGS, Scale, read_scale
from experiments.errors import ExperimentError
from experiments.nuclei import write_nuclei
from experiments.planning import Task, digest

OWN_TASK = "own_patches"
# What the fixed names of the sample tasks stand for: how much coarser they are than 0.5 um/px.
_DOWNSAMPLES = {"tissue_20x": 1, "tissue_10x": 2, "tissue_5x": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Slides and labelled images on this machine.

    Attributes:
        scale: `pocket` or `paper`.
        root: folder that everything made lies below.
        slides: the user's slides or folders of slides; empty for samples.
        catalog_given: the user's catalog, in place of slides.
        data: the user's labelled patches (pocket) or the folder of data sets (paper).
    """

    scale: Scale
    root: Path
    slides: tuple[str, ...] = ()
    catalog_given: str | None = None
    data: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Of the samples."""
        return dict(read_scale("pocket")["sample"])

    @property
    def is_sample(self) -> bool:
        """Whether slides are painted."""
        return self.scale == "pocket" and not self.slides and self.catalog_given is None

    @property
    def catalog_key(self) -> str:
        """Of what decides the slides."""
        if self.catalog_given is not None:
            return self.catalog_given
        return digest(["slides", self.settings if self.is_sample else list(self.slides)])

    @property
    def catalog(self) -> str:
        """Path or URL of the catalog."""
        if self.catalog_given is not None:
            return self.catalog_given
        if self.scale == "paper" and not self.slides:
            return str(read_scale("paper")["overrides"]["data.stream.init_args.catalog"])
        return str(self.root / "data" / self.catalog_key / "catalog")

    @property
    def sample_folder(self) -> Path:
        """Of the painted images."""
        return self.root / "data" / digest(["images", self.settings])

    @contextlib.contextmanager
    def slides_within_reach(self, lock: int) -> Iterator[None]:
        """The catalog exists, and its slides can be read, while the block runs.

        Args:
            lock: descriptor that the commands inherit; see `working.alone`.

        Raises:
            ExperimentError: there is neither a catalog nor slides.
        """
        if self.is_sample:
            folder = self.root / "data" / self.catalog_key
            number, seed = int(self.settings["slides"]), int(self.settings["seed"])
            with slides_in_bucket(
                folder / "slides", lambda to: make_slides(to, slides=number, seed=seed, small=True)
            ) as url:
                write_patients(folder / "slides" / "slides.csv", folder / "columns.csv")
                write_cohort_tables(folder / "columns.csv", *self.cohort_tables)
                self._index([url], lock, metadata=folder / "columns.csv")
                yield
            return
        if self.slides:
            self._index(list(self.slides), lock)
        elif "://" not in self.catalog and not (Path(self.catalog) / "slides.parquet").exists():
            raise ExperimentError(
                f"catalog {self.catalog}: does not exist; give --slides with a URL or folder of slides to index, or "
                "--catalog. The paper's are the 29,000 slides of TCGA, open at the Genomic Data Commons "
                "(https://portal.gdc.cancer.gov, experimental strategy 'Diagnostic Slide' and 'Tissue Slide') and, as "
                "DICOM, in the Imaging Data Commons (https://portal.imaging.datacommons.cancer.gov)"
            )
        yield

    def _index(self, slides: list[str], lock: int, *, metadata: Path | None = None) -> None:
        # Always run: what is in the catalog is kept, what is new or changed is read.
        options: list[object] = ["--metadata", metadata] if metadata is not None else []
        # Code 1: some slides were left out, each by name; the catalog of the others is whole.
        words = ["index", *slides, "--catalog", self.catalog, *options, "--foreground"]
        run_command("online-patching", *words, accept=(0, 1), keep_open=[lock])

    def sample_task(self, name: str) -> Task:
        """A task of painted patches, or of the user's."""
        if self.data is not None:
            index = self.data / "index.csv" if self.data.is_dir() else self.data
            if not index.is_file():
                raise ExperimentError(f"--data {self.data}: no index.csv there (path,label,group_id,split)")
            return _task(OWN_TASK, index, key=str(index))
        if name not in _DOWNSAMPLES:
            raise ExperimentError(f"task {name!r}: not known; allowed are {', '.join(_DOWNSAMPLES)}")
        return _task(name, self.sample_folder / name / "index.csv", key=self.sample_folder.name)

    def make_tissue(self) -> None:
        """Paint the labelled patches, at all magnifications, unless they are there."""
        if self.data is not None:
            return
        first = self.sample_folder / "painted"
        edge_px = int(self.settings["patch_px"])
        if not (first / "index.csv").exists():
            say("make labelled patches")
            settings = self.settings
            make_patches(
                first,
                seed=int(settings["seed"]),
                patches_per_class=int(settings["patches_per_class"]),
                patch_size=edge_px * max(_DOWNSAMPLES.values()),
            )
        for name, downsample in _DOWNSAMPLES.items():
            if not (self.sample_folder / name / "index.csv").exists():
                _bring_to(first, self.sample_folder / name, downsample, edge_px)

    def make_nuclei(self) -> Path:
        """Paint the images with labelled nuclei unless they are there; returns their folder."""
        folder = self.sample_folder / "nuclei"
        if not (folder / "index.csv").exists():
            say("make images with labelled nuclei")
            settings = self.settings
            write_nuclei(folder, images=int(settings["nuclei_images"]), size_px=int(settings["nuclei_px"]), seed=1)
        return folder

    @property
    def cohort_tables(self) -> tuple[Path, Path]:
        """Where the mutations and copy numbers of the sample slides' patients are."""
        folder = self.root / "data" / self.catalog_key
        return folder / "mutations.maf", folder / "copy_number.txt"

    def paper_task(self, name: str) -> Task | None:
        """A task of `configs/eval`; None if its data is not on disk."""
        content = yaml.safe_load((CONFIGS / "eval" / f"{name}.yaml").read_text(encoding="utf-8"))
        data = (self.data or Path()) / content["data"]
        if not data.exists():
            return None
        return Task(name=name, content={**without_output(content), "data": str(data.resolve())}, data_key=str(data))


def without_output(content: Mapping[str, Any]) -> dict[str, Any]:
    """A task without the place of its results, which an experiment decides."""
    return {name: value for name, value in content.items() if name != "output"}


def _task(name: str, index: Path, *, key: str) -> Task:
    settings = dict(read_scale("pocket")["evaluation"])
    return Task(name=name, content={"data": str(index.resolve()), "layout": "index", **settings}, data_key=key)


def _bring_to(source: Path, folder: Path, downsample: int, edge_px: int) -> None:
    """The middle of the same patches at a lower magnification, and their labels; the index, last, makes it whole."""
    with (source / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = folder / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.imread(str(source / row["path"]))
        assert image is not None, "the patches were written before"
        start = (image.shape[0] - edge_px * downsample) // 2
        middle = image[start : start + edge_px * downsample, start : start + edge_px * downsample]
        if not cv2.imwrite(str(path), cv2.resize(middle, (edge_px, edge_px), interpolation=cv2.INTER_AREA)):
            raise OSError(f"{path}: cannot be written")
    shutil.copy(source / "index.csv", folder / "index.csv.partial")
    (folder / "index.csv.partial").replace(folder / "index.csv")
