"""Small datasets in the layouts of their public downloads, written byte for byte as those are.

The class of an image is its tint, so that even a colour histogram can be evaluated on them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BACH_CLASSES = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
CRC_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")


def tinted(label: int, number: int, *, side: int = 24) -> NDArray[np.uint8]:
    """uint8 (side, side, 3) noise whose mean colour is that of the class."""
    random = np.random.default_rng([label, number])
    tint = np.array([label % 3, label // 3 % 3, label // 9 % 3]) * 70 + 20
    return (random.integers(0, 40, (side, side, 3)) + tint).astype(np.uint8)


def write_bach(root: Path, numbers: Sequence[int] = range(1, 101)) -> Path:
    """`ICIAR2018_BACH_Challenge/Photos`, with these images of each class."""
    for label, (name, prefix) in enumerate(BACH_CLASSES.items()):
        folder = root / "ICIAR2018_BACH_Challenge" / "Photos" / name
        folder.mkdir(parents=True)
        (folder / "Thumbs.db").write_bytes(b"")  # the download has them
        for number in numbers:
            Image.fromarray(tinted(label, number)).save(folder / f"{prefix}{number:03d}.tif")
    return root


def write_crc(root: Path) -> Path:
    """The two folders of CRC, four and two images a class."""
    for folder, count in (("NCT-CRC-HE-100K", 4), ("CRC-VAL-HE-7K", 2)):
        for label, name in enumerate(CRC_CLASSES):
            (root / folder / name).mkdir(parents=True)
            for number in range(count):
                path = root / folder / name / f"{name}-{folder[:3]}{number:04d}.tif"
                Image.fromarray(tinted(label, number + 10 * count)).save(path)
    return root


def write_mhist(root: Path) -> Path:
    """`images` and `annotations.csv` of MHIST, 24 images."""
    (root / "images").mkdir(parents=True)
    lines = ["Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"]
    for number in range(24):
        label = number % 2
        name = f"MHIST_{'abcdefghijklmnopqrstuvwx'[number] * 3}.png"
        Image.fromarray(tinted(label, number)).save(root / "images" / name)
        lines.append(f"{name},{('HP', 'SSA')[label]},{label * 6},{'test' if number % 3 == 2 else 'train'}")
    (root / "annotations.csv").write_text("\n".join(lines) + "\n")
    return root


def write_pcam(root: Path, *, meta: bool = False) -> Path:
    """The six HDF5 files of PCam, and the tables of slides if asked for."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((("train", 24), ("valid", 12), ("test", 12))):
        labels = np.arange(count) % 2
        pixels = np.stack([tinted(label, number + 100 * seed, side=96) for number, label in enumerate(labels)])
        stem = f"camelyonpatch_level_2_split_{split}"
        with h5py.File(root / f"{stem}_x.h5", "w") as file:
            file.create_dataset("x", data=pixels, chunks=(5, 96, 96, 3), compression="gzip")
        with h5py.File(root / f"{stem}_y.h5", "w") as file:
            file.create_dataset("y", data=labels.astype(np.uint8).reshape(-1, 1, 1, 1))
        if meta:
            rows = [
                f"{row},0,0,{bool(label)},False,camelyon16_{split}_{row // 4:03d}" for row, label in enumerate(labels)
            ]
            header = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"
            (root / f"{stem}_meta.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def write_cifar10(root: Path) -> Path:
    """`cifar-10-batches-py`: five batches of training and one of test images, 20 images each."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for batch, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        labels = [row % 10 for row in range(20)]
        content = _cifar_pickle(labels, "labels", seed=batch, title=f"batch {batch}")
        (folder / name).write_bytes(content)
    meta = _dict_of({"num_cases_per_batch": _int(20), "label_names": _strings(names), "num_vis": _int(3072)})
    (folder / "batches.meta").write_bytes(b"\x80\x02" + meta + b".")
    return root


def write_cifar100(root: Path) -> Path:
    """`cifar-100-python`: 200 training and 100 test images."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate((("train", 200), ("test", 100))):
        labels = [row % 100 for row in range(count)]
        (folder / name).write_bytes(_cifar_pickle(labels, "fine_labels", seed=seed, title=name))
    names = _strings([f"fine_{k:02d}" for k in range(100)])
    (folder / "meta").write_bytes(b"\x80\x02" + _dict_of({"fine_label_names": names}) + b".")
    return root


def write_food101(root: Path) -> Path:
    """`images` and `meta` of Food-101 with three dishes."""
    dishes = ("apple_pie", "baklava", "ceviche")
    for split, count in (("train", 6), ("test", 3)):
        listed = []
        for label, dish in enumerate(dishes):
            (root / "images" / dish).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                name = f"{label}{number + (100 if split == 'test' else 200)}"
                pixels = np.repeat(tinted(label, int(name)), 2, axis=1)  # wider than high, as photographs are
                Image.fromarray(pixels).save(root / "images" / dish / f"{name}.jpg", quality=95)
                listed.append(f"{dish}/{name}")
        (root / "meta").mkdir(exist_ok=True)
        (root / "meta" / f"{split}.txt").write_text("\n".join(listed) + "\n")
    (root / "meta" / "classes.txt").write_text("\n".join(dishes) + "\n")
    return root


def _cifar_pickle(labels: list[int], key: str, *, seed: int, title: str) -> bytes:
    """A batch as Python 2 pickled it (protocol 2): byte strings, and an array of numpy.core."""
    planes = np.stack(
        [tinted(label, 1000 * seed + row, side=32).transpose(2, 0, 1) for row, label in enumerate(labels)]
    )
    data = _array(planes.reshape(len(labels), 3072))
    names = _strings([f"picture_s_{row:06d}.png" for row in range(len(labels))])
    parts = {"batch_label": _string(title), key: _ints(labels), "data": data, "filenames": names}
    return b"\x80\x02" + _dict_of(parts) + b"."


def _array(values: NDArray[np.uint8]) -> bytes:
    rows, columns = values.shape
    content = values.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01b\x87Rq\x08"
        + b"(K\x01"
        + _int(rows)
        + _int(columns)
        + b"\x86cnumpy\ndtype\nq\x09U\x02u1K\x00K\x01\x87Rq\x0a(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T"
        + struct.pack("<i", len(content))
        + content
        + b"tb"
    )


def _dict_of(parts: dict[str, bytes]) -> bytes:
    return b"}q\x01(" + b"".join(_string(key) + value for key, value in parts.items()) + b"u"


def _string(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode("ascii")


def _strings(texts: list[str]) -> bytes:
    return b"]q\x02(" + b"".join(map(_string, texts)) + b"e"


def _int(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def _ints(values: list[int]) -> bytes:
    return b"]q\x03(" + b"".join(map(_int, values)) + b"e"
