"""Small OME-Zarr slides written by independent libraries (ome-zarr-py, zarr), for tests that know every pixel."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

with warnings.catch_warnings():
    # ome-zarr-py uses a class of its own that it deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_multiscale

Pixels = npt.NDArray[np.uint8]


def in_axes(level: Pixels, axes: str) -> Pixels:
    """A (H, W, 3) level in the order of some axes, with t and z of length 1; without c its first channel."""
    if "c" not in axes:
        level = level[..., :1]
    order = "yxc"
    array = level.transpose([order.index(axis) for axis in axes if axis in order] + ([2] if "c" not in axes else []))
    if "c" not in axes:
        array = array[..., 0]
    return array[tuple(slice(None) if axis in order else None for axis in axes)]


def write_ome_zarr(
    path: Path,
    levels: list[Pixels],
    *,
    version: str,
    axes: str = "cyx",
    tile: int = 128,
    planar: bool = False,
    shard_tiles: int = 0,
    mpp: float | None = 0.5,
    unit: str | None = "micrometer",
) -> None:
    """Levels (H, W, 3) written by ome-zarr-py.

    Args:
        path: Folder to write.
        levels: Finest first.
        version: ``0.4`` or ``0.5``.
        axes: Of the stored arrays.
        tile: Side of the chunks.
        planar: A chunk a channel, rather than one for all of them.
        shard_tiles: Tiles along each side of a shard; 0 for none.
        mpp: Scale of level 0.
        unit: Unit of the axes y and x, or None.
    """
    sides = {"y": tile, "x": tile, "c": 1 if planar else 3}
    options: dict[str, Any] = {"chunks": tuple(sides.get(axis, 1) for axis in axes)}
    if shard_tiles:
        options["shards"] = tuple(sides.get(a, 1) * (shard_tiles if a in "yx" else 1) for a in axes)
    types = {"t": "time", "c": "channel"}
    described = [{"name": axis, "type": types.get(axis, "space")} for axis in axes]
    for axis in described:
        if unit and axis["name"] in "yx":
            axis["unit"] = unit
    transforms = [
        [
            {
                "type": "scale",
                "scale": [(mpp or 1.0) * levels[0].shape[1] / each.shape[1] if a in "yx" else 1.0 for a in axes],
            }
        ]
        for each in levels
    ]
    with warnings.catch_warnings():
        # It prefers to compute the scales itself; here they are stated.
        warnings.simplefilter("ignore", DeprecationWarning)
        write_multiscale(
            [in_axes(level, axes) for level in levels],
            str(path),
            fmt=FormatV04() if version == "0.4" else FormatV05(),
            axes=described,
            coordinate_transformations=transforms,
            storage_options=options,
        )


def write_zarr_levels(
    path: Path,
    levels: list[Pixels],
    *,
    axes: str,
    zarr_format: int,
    attributes: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Levels written by zarr itself with options of its own, and NGFF metadata beside them."""
    group = zarr.create_group(str(path), zarr_format=zarr_format)
    datasets = []
    for k, level in enumerate(levels):
        array = group.create_array(str(k), data=in_axes(level, axes), **options)
        scale = [2.0**k if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": array.basename, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    image = {"axes": [{"name": axis} for axis in axes], "datasets": datasets}
    ome = (
        {"version": "0.5", "multiscales": [image]}
        if zarr_format == 3
        else {"multiscales": [{**image, "version": "0.4"}]}
    )
    group.attrs.update({"ome": ome} if zarr_format == 3 else ome)
    group.attrs.update(attributes or {})
