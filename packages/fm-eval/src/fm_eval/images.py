"""How is image number i of a dataset read, whatever holds it?

Public datasets come as folders of image files, as HDF5 arrays and as pickled batches. Behind one small
protocol they look the same: N images, each with a name for messages and a digest of its content. Nothing is
held in memory but what the format forces to be (the CIFAR batches: 180 MB).

`digests` decide what was embedded already, which images are the same, and the hash of the dataset. Before:
transform. After: layouts, datasets, embed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fm_eval.errors import DatasetError
from fm_eval.transform import load_rgb

# HDF5 reads whole chunks: keep a few dozen of them, so that neighbours do not read them again
_CHUNK_CACHE_BYTES = 64 << 20


class Images(Protocol):
    """N images in a fixed order: all that `embed` needs."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, row: int, /) -> Image.Image:
        """Decode one image to RGB; safe to call from several threads."""
        ...

    def name(self, row: int, /) -> str:
        """What messages call it."""
        ...


class ImageSource(Images, Protocol):
    """N images that also know their files and contents."""

    @property
    def files(self) -> list[tuple[Path, int]]:
        """Files in order, each with the number of images in it; empty for images in memory."""
        ...

    def digests(self, *, threads: int) -> list[str]:
        """sha256 of each image's content, in hexadecimal.

        Raises:
            DatasetError: an image is missing or not an image.
        """
        ...


class ImageFiles:
    """Images in files of their own; the digest is over the file's bytes.

    Args:
        paths: N image files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int, /) -> Image.Image:
        """Decode one file to RGB."""
        return load_rgb(self.paths[row])

    def name(self, row: int, /) -> str:
        """The path."""
        return str(self.paths[row])

    @property
    def files(self) -> list[tuple[Path, int]]:
        """One image a file."""
        return [(path, 1) for path in self.paths]

    def digests(self, *, threads: int) -> list[str]:
        """Hash every file; refuses what is missing or no image before anything expensive starts."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(_hash_image_file, self.paths))


class PixelArray:
    """Images in memory; the digest is over the pixels.

    Args:
        pixels: uint8 (N, H, W, 3) RGB.
        title: what messages call the array.
    """

    def __init__(self, pixels: NDArray[np.uint8], *, title: str) -> None:
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
            raise DatasetError(f"{title}: got {pixels.dtype} {pixels.shape}, expected uint8 (N, H, W, 3)")
        self.pixels = pixels
        self._title = title

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, row: int, /) -> Image.Image:
        """Wrap one image."""
        return Image.fromarray(self.pixels[row])

    def name(self, row: int, /) -> str:
        """Title and row."""
        return f"{self._title}[{row}]"

    @property
    def files(self) -> list[tuple[Path, int]]:
        """None: they are in memory."""
        return []

    def digests(self, *, threads: int) -> list[str]:
        """Hash the pixels of every image."""
        del threads
        return [_hash_pixels(image) for image in self.pixels]


class Hdf5Images:
    """Images in one HDF5 dataset, read a row at a time; the digest is over the pixels.

    Args:
        path: HDF5 file.
        key: dataset of uint8 (N, H, W, 3) RGB.

    Raises:
        DatasetError: no such file or key, another shape or type, or no HDF5 file.
    """

    def __init__(self, path: Path, key: str = "x") -> None:
        self.path = path
        self.key = key
        shape, kind = hdf5_shape(path, key)
        if len(shape) != 4 or shape[3] != 3 or kind != np.uint8:
            raise DatasetError(f"file {path}: {key!r} is {kind} {shape}, expected uint8 (N, H, W, 3)")
        self._rows = int(shape[0])

    def __len__(self) -> int:
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}

    def read(self, row: int, /) -> Image.Image:
        """Read one image (h5py serialises the reads of its threads)."""
        return Image.fromarray(self._read(row))

    def name(self, row: int, /) -> str:
        """Path, key and row."""
        return f"{self.path}:{self.key}[{row}]"

    @property
    def files(self) -> list[tuple[Path, int]]:
        """All images in one file."""
        return [(self.path, self._rows)]

    def digests(self, *, threads: int) -> list[str]:
        """Read and hash every image."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda row: _hash_pixels(self._read(row)), range(self._rows)))

    @cached_property
    def _pixels(self) -> Any:
        import h5py

        return h5py.File(self.path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)[self.key]

    def _read(self, row: int) -> NDArray[np.uint8]:
        try:
            pixels: NDArray[np.uint8] = self._pixels[row]
        except (OSError, KeyError, ValueError) as error:
            raise DatasetError(
                f"image {self.name(row)}: cannot be read ({_one_line(error)}); get the file again"
            ) from error
        return pixels


class JoinedImages:
    """Several sources one after the other.

    Args:
        parts: sources, in order.
    """

    def __init__(self, parts: Sequence[ImageSource]) -> None:
        self.parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, row: int, /) -> Image.Image:
        """Read from the part that holds the row."""
        part, row = self._locate(row)
        return self.parts[part].read(row)

    def name(self, row: int, /) -> str:
        """Name in its part."""
        part, row = self._locate(row)
        return self.parts[part].name(row)

    @property
    def files(self) -> list[tuple[Path, int]]:
        """Files of all parts."""
        return [file for part in self.parts for file in part.files]

    def digests(self, *, threads: int) -> list[str]:
        """Digests of all parts."""
        return [digest for part in self.parts for digest in part.digests(threads=threads)]

    def _locate(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return part, row - int(self._starts[part])


class SelectedImages:
    """Some rows of a source, in the order given.

    Args:
        images: source.
        rows: (n,) row numbers.
    """

    def __init__(self, images: Images, rows: NDArray[np.int64]) -> None:
        self._images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, row: int, /) -> Image.Image:
        """Read the row's image."""
        return self._images.read(int(self._rows[row]))

    def name(self, row: int, /) -> str:
        """Name in the source."""
        return self._images.name(int(self._rows[row]))


def hdf5_shape(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of one HDF5 dataset.

    Raises:
        DatasetError: no such file or key, or no HDF5 file.
    """
    import h5py

    if not path.is_file():
        raise DatasetError(f"file {path}: does not exist")
    try:
        with h5py.File(path, "r") as file:
            if key not in file:
                raise DatasetError(f"file {path}: has no {key!r}, only {', '.join(sorted(file))}")
            return tuple(file[key].shape), file[key].dtype
    except OSError as error:
        raise DatasetError(
            f"file {path}: not a readable HDF5 file ({_one_line(error)}); is it whole and decompressed?"
        ) from error


def _hash_image_file(path: Path) -> str:
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)):  # header only: decoding errors are found, and named, by transform
            pass
    except FileNotFoundError as error:
        raise DatasetError(f"image {path}: does not exist") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        reason = "empty file" if path.is_file() and path.stat().st_size == 0 else "not an image that Pillow reads"
        raise DatasetError(f"image {path}: {reason}; replace the file or drop its row") from error
    return hashlib.sha256(content).hexdigest()


def _hash_pixels(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
