"""What does a catalog or a slide hold, in a few lines or as JSON?"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from online_patching.catalog import Catalog
from online_patching.failures import read_failures
from online_patching.slide import Slide
from online_patching.slide_row import SlideRow, row_to_json

FORMAT_VERSION = 1
SHOWN_FAILURES = 5


def catalog_info(catalog: Catalog) -> dict[str, Any]:
    """Counts over a catalog, as JSON values."""
    rows = catalog.rows
    mpp = rows.numbers("mpp")
    foreground = rows.numbers("foreground_area_mm2")
    methods = catalog.table()["foreground_method"].to_pylist()
    return {
        "format_version": FORMAT_VERSION,
        "catalog": catalog.shown_url,
        "slides": len(rows),
        "vendors": _counted(catalog.table()["vendor"].to_pylist()),
        "levels": _counted(int(count) for count in rows.numbers("levels")),
        "mpp": _counted("unknown" if np.isnan(value) else f"{value:.2f}" for value in mpp),
        "mpp_assumed": sum(value == "assumed" for value in catalog.table()["mpp_source"].to_pylist()),
        "tiles": int(rows.numbers("tiles").sum()),
        "bytes": int(rows.numbers("size").sum()),
        "slides_with_foreground": int(np.count_nonzero(rows.numbers("foreground_area_level0_px2") > 0)),
        "slides_without_foreground": int(np.count_nonzero(rows.numbers("foreground_area_level0_px2") == 0)),
        "slides_not_searched": int(np.count_nonzero(np.isnan(rows.numbers("foreground_area_level0_px2")))),
        "foreground_methods": _counted(name for name in methods if name is not None),
        "foreground_mm2": round(float(np.nansum(foreground)), 3),
        "columns": list(rows.user_columns),
        "failures": [
            {"id": failure.slide, "url": failure.url, "error": failure.error, "reason": failure.reason}
            for failure in read_failures(catalog.folder)
        ],
    }


def catalog_lines(info: dict[str, Any]) -> list[str]:
    """The same to read."""
    failures = info["failures"]
    counts = {"none on": info["slides_without_foreground"], "not computed for": info["slides_not_searched"]}
    missing = "".join(f", {words} {count:,}" for words, count in counts.items() if count)
    lines = [
        f"{info['catalog']}: {info['slides']:,} slides, {info['tiles']:,} tiles, {info['bytes'] / 1e9:,.3g} GB",
        f"formats: {_listed(info['vendors'])}",
        f"levels: {_listed(info['levels'])}",
        f"um/px of level 0: {_listed(info['mpp'])}; {info['mpp_assumed']} assumed from the magnification",
        f"foreground: {info['slides_with_foreground']:,} slides, {info['foreground_mm2']:,.1f} mm2{missing}; found by"
        f" {_listed(info['foreground_methods'])}",
        f"columns: {', '.join(info['columns']) or 'none'}",
        f"failures: {len(failures)}",
    ]
    lines += [f"  {failure['id']}: {failure['reason']}" for failure in failures[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        lines.append(f"  and {len(failures) - SHOWN_FAILURES} more")
    return lines


def slide_info(slide: Slide, row: SlideRow | None = None) -> dict[str, Any]:
    """What is known of one slide, as JSON values.

    Args:
        slide: The slide.
        row: Its row, where it is a slide of a catalog.
    """
    facts = {
        "format_version": FORMAT_VERSION,
        "slide": slide.slide_id,
        "vendor": slide.header.vendor,
        "mpp": slide.mpp,
        "levels": [
            {
                "width_px": level.width_px,
                "height_px": level.height_px,
                "downsample": level.downsample,
                "tile_width_px": level.tile_width_px,
                "tile_height_px": level.tile_height_px,
                "codec": encoding.codec.value,
                "colour": encoding.colour.value,
            }
            for level, encoding in zip(slide.levels, slide.header.encodings, strict=True)
        ],
        "properties": slide.header.properties,
    }
    return facts if row is None else {**facts, "row": row_to_json(row)}


def slide_lines(info: dict[str, Any]) -> list[str]:
    """The same to read."""
    mpp = "unknown" if info["mpp"] is None else f"{info['mpp']:.4g}"
    lines = [f"{info['slide']}: {info['vendor']}, {mpp} um/px"]
    lines += [
        f"  level {k}: {level['width_px']} x {level['height_px']} px, downsample {level['downsample']:.4g}, tiles"
        f" {level['tile_width_px']} x {level['tile_height_px']}, {level['codec']}"
        for k, level in enumerate(info["levels"])
    ]
    row = info.get("row")
    if row is not None:
        area = row["foreground_area_level0_px2"]
        share = "not computed" if area is None else f"{area / (row['width_px'] * row['height_px']):.0%} of the slide"
        lines.append(f"  url {row['url']}, {row['tiles']:,} tiles, um/px from: {row['mpp_source'] or 'nowhere'}")
        lines.append(f"  foreground {share}" + (f", found by {method}" if (method := row["foreground_method"]) else ""))
        lines += [f"  {name}: {value}" for name, value in row["columns"].items()]
    return lines


def _counted(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items(), key=lambda item: str(item[0]))}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} ({count:,})" for value, count in counts.items()) or "none"
