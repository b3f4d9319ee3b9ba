"""What is not on this machine, where is it to be had, and what runs without it?"""

from __future__ import annotations

from pathlib import Path

import yaml

from experiments.definition import CONFIGS, Model

# The public names of what the tasks of `configs/eval` read.
_PUBLIC = {
    "bach": "ICIAR 2018 Grand Challenge BACH (https://iciar2018-challenge.grand-challenge.org)",
    "crc": "NCT-CRC-HE-100K and CRC-VAL-HE-7K (Zenodo record 1214456)",
    "mhist": "MHIST (https://bmirds.github.io/MHIST)",
    "pcam": "PatchCamelyon (https://github.com/basveeling/pcam), the six HDF5 files, unpacked",
    "consep": "CoNSeP (University of Warwick, TIA Centre, with HoVer-Net)",
    "cifar10": "CIFAR-10, python version (https://www.cs.toronto.edu/~kriz/cifar.html)",
    "cifar100": "CIFAR-100, python version (https://www.cs.toronto.edu/~kriz/cifar.html)",
    "food101": "Food-101 (https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101)",
}


def missing_task(name: str, root: Path | None) -> str:
    """One line for a data set that is not on disk."""
    data = yaml.safe_load((CONFIGS / "eval" / f"{name}.yaml").read_text(encoding="utf-8"))["data"]
    place = (root or Path()) / data
    return (
        f"task {name}: {place} does not exist; it is {_PUBLIC[name]}. Unpack it there, or give the folder above with "
        "--data. The other tasks run without it."
    )


def missing_weights(model: Model, folder: Path | None) -> str:
    """One line for weights that are not on disk."""
    where = "no --weights FOLDER was given" if folder is None else f"{folder / str(model.file)} does not exist"
    return f"model {model.name}: {where}; it is {model.where}, as {model.file}. The other rows run without it."


def missing_cohort(*lacking: Path) -> str:
    """One line for the tables that the TP53 task is made from."""
    return (
        f"task tp53: {' and '.join(str(path) for path in lacking)} missing; the mutations (mc3, MAF) and copy numbers "
        "(GISTIC 2, all_thresholded.by_genes) of all TCGA patients are open in the PanCanAtlas publication of the "
        "Genomic Data Commons (https://gdc.cancer.gov/about-data/publications/pancanatlas). The other tasks run "
        "without them."
    )
