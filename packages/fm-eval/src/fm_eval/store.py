"""Where do embeddings lie so that no image is ever embedded twice by the same model?

    FOLDER/<model>/<part>-<content>/     model: what decides an embedding (backbone identity, transform, precision)
        embeddings.npy                   float32 (N, K), content: the N images in this order
        index.csv                        row, image name, sha256 of the image
        provenance.json                  written last: the entry is whole
    FOLDER/<model>/<part>-<content>.part rows so far, appended batch by batch; each row carries image and checksum

1. a whole entry of the same model and images is read;
2. else rows are gathered by image content from the model's other entries and from an interrupted run;
3. only what is left is embedded, and every batch is on disk before the next one is asked for.

A lock lets one process at a time work on an entry; others wait for it. Before: embed. After: evaluate.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fm_eval.atomic import replace_file
from fm_eval.backbone import LoadedBackbone
from fm_eval.datasets import SPLITS, PatchDataset
from fm_eval.embed import EmbedSettings, embed_batches
from fm_eval.errors import StoreError
from fm_eval.images import Images, SelectedImages
from fm_eval.row_log import RowLog
from fm_eval.transform import TRANSFORM_NAME

_log = logging.getLogger(__name__)

FORMAT = "fm-eval-embeddings"
FORMAT_VERSION = 1
_PACKAGES = ("fm-eval", "torch", "timm", "pillow")


@dataclass(frozen=True, slots=True)
class StoredEmbeddings:
    """Embeddings of a dataset.

    Attributes:
        values: float32 (N, K) in the order of the dataset.
        computed: images that were embedded now; the others were there.
        seconds: wall time of all.
        folders: entries that they lie in, empty without a store.
    """

    values: NDArray[np.float32]
    computed: int
    seconds: float
    folders: tuple[Path, ...]


def embed_dataset(
    dataset: PatchDataset, backbone: LoadedBackbone, *, store: Path | None, settings: EmbedSettings
) -> StoredEmbeddings:
    """Embed what is not embedded yet.

    The parts are the splits that the dataset came with. A split that was made is no part: with another seed the
    same images are read from the same entry.

    Args:
        dataset: from `load_dataset`.
        backbone: from `load_backbone`.
        store: folder; None keeps nothing.
        settings: batch size, device, precision and the like.

    Raises:
        DatasetError: an image cannot be decoded.
        BackboneError: the backbone fails, or returns another shape or values that are not finite.
        StoreError: an entry is damaged or of another model, or the folder cannot be written.
    """
    start = time.perf_counter()
    parts = {split: dataset.rows(split) for split in SPLITS} if dataset.split_source == "given" else {}
    parts = {split: rows for split, rows in parts.items() if len(rows)} or {"all": np.arange(len(dataset))}
    values: NDArray[np.float32] | None = None
    computed, folders = 0, []
    for part, rows in parts.items():
        images = SelectedImages(dataset.images, rows)
        digests = [dataset.digests[row] for row in rows]
        if store is None:
            found, fresh = np.concatenate(list(embed_batches(images, backbone, settings))), len(rows)
        else:
            name = f"{dataset.name}-{part}"
            found, fresh, folder = _stored(store, name, images, digests, backbone, settings)
            folders.append(folder)
        if values is None:
            values = np.empty((len(dataset), found.shape[1]), np.float32)
        values[rows] = found
        computed += fresh
    assert values is not None, "a dataset has rows"
    return StoredEmbeddings(values, computed, time.perf_counter() - start, tuple(folders))


def _stored(
    store: Path,
    name: str,
    images: Images,
    digests: Sequence[str],
    backbone: LoadedBackbone,
    settings: EmbedSettings,
) -> tuple[NDArray[np.float32], int, Path]:
    """Embeddings of one part, how many were computed, and the entry."""
    key = _model_key(backbone, settings)
    model_folder = store / "embeddings" / key[:32]
    content = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    entry = model_folder / f"{name}-{content[:16]}"
    try:
        model_folder.mkdir(parents=True, exist_ok=True)
        with _locked(model_folder / f"{entry.name}.lock"):
            if (entry / "provenance.json").is_file():
                return _read(entry, key, len(digests)), 0, entry
            computed = _fill(entry, key, images, digests, backbone, settings)
            return _read(entry, key, len(digests)), computed, entry
    except OSError as error:
        raise StoreError(
            f"store {store}: cannot be written ({error.strerror or error}); give another folder"
        ) from error


def _model_key(backbone: LoadedBackbone, settings: EmbedSettings) -> str:
    """Hash of all that decides an embedding beside the image."""
    return hashlib.sha256(f"{backbone.identity} {TRANSFORM_NAME} {settings.precision}".encode()).hexdigest()


def _fill(
    entry: Path,
    key: str,
    images: Images,
    digests: Sequence[str],
    backbone: LoadedBackbone,
    settings: EmbedSettings,
) -> int:
    """Write an entry; returns how many images were embedded for it."""
    first_row = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    known = _known(entry.parent, key, first_row)
    with RowLog(entry.with_name(f"{entry.name}.part")) as log:
        missing = sorted(row for digest, row in first_row.items() if digest not in known)
        if any(digests[row] not in log for row in missing):
            # What a crash left of a batch is embedded anew with all of it: rows that are batched in another way differ
            # in their last bits.
            log.keep(len(log) // settings.batch_size * settings.batch_size)
        wanted = [row for row in missing if digests[row] not in log]
        if wanted:
            _append(log, SelectedImages(images, np.array(wanted)), [digests[row] for row in wanted], backbone, settings)
        _write(entry, key, images, digests, lambda digest: log[digest] if digest in log else known[digest], backbone)
        log.delete()
    return len(wanted)


def _append(
    log: RowLog, images: Images, digests: Sequence[str], backbone: LoadedBackbone, settings: EmbedSettings
) -> None:
    start = 0
    for batch in embed_batches(images, backbone, settings, done=len(log)):
        log.append(digests[start : start + len(batch)], batch)
        start += len(batch)


def _known(model_folder: Path, key: str, wanted: dict[str, int]) -> dict[str, NDArray[np.float32]]:
    """Rows of wanted images in the model's whole entries."""
    known: dict[str, NDArray[np.float32]] = {}
    for provenance in sorted(model_folder.glob("*/provenance.json")):
        digests = pd.read_csv(provenance.parent / "index.csv", usecols=["sha256"], dtype=str)["sha256"].tolist()
        rows = [(digest, row) for row, digest in enumerate(digests) if digest in wanted and digest not in known]
        if rows:
            values = _read(provenance.parent, key, len(digests))
            known |= {digest: values[row] for digest, row in rows}
    return known


def _write(
    entry: Path,
    key: str,
    images: Images,
    digests: Sequence[str],
    row_of: Callable[[str], NDArray[np.float32]],
    backbone: LoadedBackbone,
) -> None:
    width = len(row_of(digests[0]))
    with replace_file(entry / "embeddings.npy") as temporary:
        with temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(digests), width)}
            np.lib.format.write_array_header_1_0(file, header)
            for digest in digests:
                file.write(row_of(digest).astype("<f4").tobytes())
        sha256 = _hash_file(temporary)
    with replace_file(entry / "index.csv") as temporary:
        names = [images.name(row) for row in range(len(digests))]
        pd.DataFrame({"image": names, "sha256": digests}).to_csv(temporary, index_label="row")
    provenance = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_key": key,
        "shape": [len(digests), width],
        "sha256": sha256,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "transform": TRANSFORM_NAME,
        "input_size_px": backbone.input_size_px,
        "weights_sha256": backbone.weights_sha256,
        "recipe": backbone.recipe,
        "backbone": backbone.provenance,
        "versions": {package: version(package) for package in _PACKAGES},
    }
    with replace_file(entry / "provenance.json") as temporary:
        temporary.write_text(json.dumps(provenance, indent=1, default=str) + "\n", encoding="utf-8")


def _read(entry: Path, key: str, rows: int) -> NDArray[np.float32]:
    """Read a whole entry.

    Raises:
        StoreError: damaged, a newer format, or of another model.
    """
    remedy = f"delete the folder {entry}"
    try:
        content = json.loads((entry / "provenance.json").read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["format_version"] > FORMAT_VERSION:
            raise StoreError(
                f"store {entry}: format {content['format']} {content['format_version']}, "
                f"expected {FORMAT} up to {FORMAT_VERSION}; update fm-eval or {remedy}"
            )
        if content["model_key"] != key:
            raise StoreError(
                f"store {entry}: holds embeddings of another model, "
                f"weights {content['weights_sha256'][:12]}...; {remedy}"
            )
        values: NDArray[np.float32] = np.load(entry / "embeddings.npy", allow_pickle=False)
        intact = list(values.shape) == content["shape"] and values.shape[0] == rows and values.dtype == np.float32
        if not intact or _hash_file(entry / "embeddings.npy") != content["sha256"]:
            raise StoreError(f"store {entry}: embeddings.npy is not the array that provenance.json describes; {remedy}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"store {entry}: damaged ({' '.join(str(error).split())[:100]}); {remedy}") from error
    return values


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time into the block."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("store: waiting for another process that embeds the same images (%s)", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(stored: StoredEmbeddings) -> dict[str, Any]:
    """What a result says of them: seconds, bytes and how many were computed."""
    return {
        "computed": stored.computed,
        "read": len(stored.values) - stored.computed,
        "seconds": round(stored.seconds, 3),
        "bytes": int(stored.values.nbytes),
    }
