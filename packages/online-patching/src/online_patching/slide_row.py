"""What does a catalog know of a slide without opening it?

A ``SlideRow`` is one row of the slide table: plain values only, enough to choose slides and to sample patches.
Everything else of the header lies in the slide's own tile table. ``row_of`` makes it of what indexing found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from online_patching.bytesource import ObjectInfo, PinnedObject
from online_patching.errors import CatalogError
from online_patching.formats.header import SlideHeader, TileRanges

Scalar = str | int | float | bool | None

MppSource = Literal["file", "given", "assumed"]

# What slide files call the power of the objective; its values look like "40" or "40x".
MAGNIFICATION_PROPERTIES = ("appmag", "objective-power", "objectivepower", "nominalmagnification", "sourcelens")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRow:
    """One row of the slide table.

    Attributes:
        id: Unique in the catalog.
        url: Where the slide lies.
        size: Bytes of the slide's objects together.
        version: What pins them: the entity tag or time of a single object, a digest of those of several.
        objects: Number of objects; most formats have one.
        vendor: Name of the format.
        mpp: um per pixel of level 0 that holds: the user's, the file's, or the assumed one; None where not known.
        mpp_file: um per pixel of level 0 as the file states it.
        mpp_source: Where ``mpp`` comes from: the ``file``, ``given`` by the user, ``assumed`` of the magnification.
        magnification: Power of the objective as the file states it.
        width_px: Width of level 0.
        height_px: Height of level 0.
        levels: Number of levels.
        coarsest_downsample: Level-0 pixels per pixel of the coarsest level.
        tiles: Number of tiles of all levels; 0 where they are no byte ranges.
        front_bytes: Length of the front of the slide's tile table.
        experimental: Whether experimental formats were allowed when it was indexed.
        folder: Where the slide's files lie: a URL, or a path below the catalog; None for ``slides/<id>``.
        foreground_area_level0_px2: Area of the foreground in square level-0 pixels, or None where not computed yet.
        foreground_method: How the foreground was found: a method with what differs from its defaults, or annotations.
        foreground_digest: Of its polygon as it is stored, so that another one of the same area is told apart.
        columns: The user's columns (patient, label, split, ...); None values are left out.
    """

    id: str
    url: str
    size: int
    version: str
    objects: int = 1
    vendor: str
    mpp: float | None
    mpp_file: float | None = None
    mpp_source: MppSource | None = None
    magnification: float | None = None
    width_px: int
    height_px: int
    levels: int
    coarsest_downsample: float
    tiles: int
    front_bytes: int
    experimental: bool = False
    folder: str | None = None
    foreground_area_level0_px2: float | None = None
    foreground_method: str | None = None
    foreground_digest: str | None = None
    columns: dict[str, Scalar] = field(default_factory=dict)

    @property
    def info(self) -> ObjectInfo:
        """Size and version of the slide's objects together."""
        return ObjectInfo(self.size, self.version)

    @property
    def foreground_area_mm2(self) -> float | None:
        """Area of the foreground, or None where it or the mpp is not known."""
        if self.foreground_area_level0_px2 is None or self.mpp is None:
            return None
        return self.foreground_area_level0_px2 * self.mpp**2 / 1e6

    def with_foreground(self, method: str, area_level0_px2: float, wkb: bytes) -> SlideRow:
        """This row with a foreground that was just found, whose stored polygon is ``wkb``."""
        digest = hashlib.sha256(wkb).hexdigest()[:16]
        return replace(
            self,
            foreground_area_level0_px2=area_level0_px2,
            foreground_method=method,
            foreground_digest=digest,
        )

    def without_foreground(self) -> SlideRow:
        """This row as it is before a foreground is found."""
        return replace(self, foreground_area_level0_px2=None, foreground_method=None, foreground_digest=None)


def combined_info(objects: Sequence[PinnedObject]) -> ObjectInfo:
    """Size and version that stand for all objects of a slide."""
    if len(objects) == 1:
        return objects[0].info
    facts = repr([(each.url, each.info.size, each.info.version) for each in objects])
    return ObjectInfo(sum(each.info.size for each in objects), hashlib.sha256(facts.encode()).hexdigest()[:32])


def row_of(
    slide_id: str,
    url: str,
    *,
    header: SlideHeader,
    objects: Sequence[PinnedObject],
    tiles: Sequence[TileRanges],
    front_bytes: int,
    experimental: bool = False,
) -> SlideRow:
    """The row of a slide that was just indexed, with the resolution that its file states."""
    info, base = combined_info(objects), header.levels[0]
    return SlideRow(
        id=slide_id,
        url=url,
        size=info.size,
        version=info.version,
        objects=len(objects),
        vendor=header.vendor,
        mpp=header.mpp,
        mpp_file=header.mpp,
        mpp_source=None if header.mpp is None else "file",
        magnification=magnification_of(header.properties),
        width_px=base.width_px,
        height_px=base.height_px,
        levels=len(header.levels),
        coarsest_downsample=max(level.downsample for level in header.levels),
        tiles=sum(len(level.offset) for level in tiles),
        front_bytes=front_bytes,
        experimental=experimental,
    )


def magnification_of(properties: dict[str, str]) -> float | None:
    """Power of the objective (40 for 40x) from a header's properties, or None where they do not say."""
    by_name = {name.lower().rpartition(".")[2]: value for name, value in reversed(properties.items())}
    for name in MAGNIFICATION_PROPERTIES:
        try:
            value = float(by_name.get(name, "").strip().lower().removesuffix("x"))
        except ValueError:
            continue
        if 0 < value <= 1000:
            return value
    return None


def row_to_json(row: SlideRow) -> dict[str, Any]:
    """A row as plain JSON values."""
    return {name: getattr(row, name) for name in SlideRow.__dataclass_fields__}


def row_from_json(record: dict[str, Any], name: str) -> SlideRow:
    """The row of ``row_to_json``.

    Raises:
        CatalogError: Missing or unknown values.
    """
    try:
        return SlideRow(**record)
    except TypeError as error:
        raise CatalogError(f"{name}: the row is damaged ({error}); index the slide again") from error
