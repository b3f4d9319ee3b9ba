"""How do pictures and facts of slides become one HTML page that needs nothing else?

Text and pixels in, text out: pictures are data URIs, outlines and boxes are SVG over them, the style is inline, and
there is no script. Everything that comes from a slide or a catalog is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np
import shapely

from online_patching.decode import Pixels

# Colours of magnifications, the finest first; told apart in daylight, in the dark, and by most colour-blind eyes.
COLOURS = ("#d55e00", "#0072b2", "#aa3a97", "#b88a00", "#00805e", "#5a5ad6", "#8c4a2f", "#606060")
JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class ShownPatch:
    """A patch and where it lies.

    Attributes:
        pixels: uint8 (H, W, 3).
        x_level0_px: Left edge.
        y_level0_px: Upper edge.
        size_level0_px: Side.
        mpp: um per pixel.
        foreground: Share of it inside the foreground, 0 to 1.
    """

    pixels: Pixels
    x_level0_px: int
    y_level0_px: int
    size_level0_px: float
    mpp: float
    foreground: float


@dataclass(frozen=True, slots=True)
class ShownSlide:
    """A slide on the page.

    Attributes:
        id: Its id.
        thumbnail: uint8 (H, W, 3); None where it could not be read.
        width_level0_px: Width of level 0.
        height_level0_px: Height of level 0.
        outline: Foreground in level-0 pixels.
        foreground: Its share and area in words.
        facts: Names and values of what is known of the slide; empty for one of the contact sheet only.
        patches: Patches by magnification, um per pixel.
        notes: What could not be shown, and why.
    """

    id: str
    thumbnail: Pixels | None
    width_level0_px: int
    height_level0_px: int
    outline: shapely.Geometry
    foreground: str
    facts: Mapping[str, str]
    patches: Mapping[float, Sequence[ShownPatch]]
    notes: Sequence[str] = ()


def page(title: str, subtitle: str, slides: Sequence[ShownSlide], sheet: Sequence[ShownSlide], left_out: str) -> str:
    """The page.

    Args:
        title: Heading.
        subtitle: One line below.
        slides: Slides that are shown at length.
        sheet: Slides of the contact sheet; left away where it would show a single slide that is shown at length.
        left_out: What the contact sheet does not show, or "".
    """
    at_length = {slide.id: number for number, slide in enumerate(slides)}
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="quiet">{escape(subtitle)}</p>']
    if len(sheet) > 1 or not slides:
        tiles = "".join(_sheet_tile(slide, at_length.get(slide.id)) for slide in sheet)
        parts.append(f'<section aria-label="Contact sheet"><h2>Slides</h2><ul class="sheet">{tiles}</ul>')
        parts.append(f'<p class="quiet">{escape(left_out)}</p></section>' if left_out else "</section>")
    parts += [_section(slide, number) for number, slide in enumerate(slides)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def colour_of(mpp: float, mpps: Sequence[float]) -> str:
    """The colour of a magnification among those of the page."""
    return COLOURS[sorted(mpps).index(mpp) % len(COLOURS)]


def data_uri(pixels: Pixels) -> str:
    """A picture as a JPEG in a URI."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), options)
    assert done, "a picture in memory can be encoded"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def outline_path(outline: shapely.Geometry, scale: float) -> str:
    """A polygon as the data of an SVG path, its coordinates times ``scale``."""
    rings = [ring for part in shapely.get_parts(outline) for ring in (part.exterior, *part.interiors)]
    drawn = []
    for ring in rings:
        corners = np.round(np.asarray(ring.coords)[:-1] * scale, 1)
        drawn.append("M" + "L".join(f"{x:g} {y:g}" for x, y in corners.tolist()) + "Z")
    return "".join(drawn)


def _sheet_tile(slide: ShownSlide, number: int | None) -> str:
    inner = _overview(slide, f"Slide {slide.id} with its foreground: {slide.foreground}")
    name = f"<span>{escape(slide.id)}</span>"
    if number is not None:
        inner, name = f'<a href="#s{number}" tabindex="-1">{inner}</a>', f'<a href="#s{number}">{escape(slide.id)}</a>'
    notes = "".join(f'<small class="warn">{escape(note)}</small>' for note in slide.notes)
    return f"<li>{inner}{name}<small>{escape(slide.foreground)}</small>{notes}</li>"


def _overview(slide: ShownSlide, label: str, boxes: str = "") -> str:
    """The thumbnail with the foreground's outline, and boxes, over it."""
    if slide.thumbnail is None:
        return f'<div class="missing" role="img" aria-label="{escape(label)}">no picture</div>'
    height, width = slide.thumbnail.shape[:2]
    scale = width / slide.width_level0_px
    return (
        f'<svg class="overview" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
        f' style="aspect-ratio:{width}/{height}">'
        f'<image href="{data_uri(slide.thumbnail)}" width="{width}" height="{height}"/>'
        f'<path class="halo" d="{outline_path(slide.outline, scale)}"/>'
        f'<path class="outline" d="{outline_path(slide.outline, scale)}"/>{boxes}</svg>'
    )


def _section(slide: ShownSlide, number: int) -> str:
    mpps = list(slide.patches)
    facts = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in slide.facts.items()
    )
    boxes = "".join(
        _box(slide, patch, colour_of(mpp, mpps)) for mpp in sorted(mpps, reverse=True) for patch in slide.patches[mpp]
    )
    legend = "".join(
        f'<li><span class="swatch" style="border-color:{colour_of(mpp, mpps)}"></span>{mpp:g} um/px</li>'
        for mpp in sorted(mpps)
        if slide.patches[mpp]
    )
    label = f"Slide {slide.id}: thumbnail, outline of its foreground, and boxes of the patches shown below"
    notes = "".join(f'<p class="warn">{escape(note)}</p>' for note in slide.notes)
    examples = "".join(_examples(mpp, slide.patches[mpp], colour_of(mpp, mpps)) for mpp in sorted(mpps))
    return (
        f'<section id="s{number}" aria-labelledby="h{number}"><h2 id="h{number}">{escape(slide.id)}</h2>{notes}'
        f'<div class="slide"><figure>{_overview(slide, label, boxes)}<figcaption><ul class="legend">'
        f'<li><span class="swatch tissue"></span>foreground</li>{legend}</ul></figcaption></figure>'
        f"<table><caption>Facts</caption><tbody>{facts}</tbody></table></div>{examples}</section>"
    )


def _box(slide: ShownSlide, patch: ShownPatch, colour: str) -> str:
    assert slide.thumbnail is not None, "patches are read of slides that can be read"
    scale = slide.thumbnail.shape[1] / slide.width_level0_px
    x, y, side = patch.x_level0_px * scale, patch.y_level0_px * scale, patch.size_level0_px * scale
    # A box of less than a few pixels would not be seen.
    grown = max(side, 5.0)
    x, y = x - (grown - side) / 2, y - (grown - side) / 2
    place = f'x="{x:.1f}" y="{y:.1f}" width="{grown:.1f}" height="{grown:.1f}"'
    return (
        f'<rect {place} class="halo"/><rect {place} class="box" style="stroke:{colour}">'
        f"<title>{patch.mpp:g} um/px at ({patch.x_level0_px}, {patch.y_level0_px})</title></rect>"
    )


def _examples(mpp: float, patches: Sequence[ShownPatch], colour: str) -> str:
    if not patches:
        return ""
    shown = "".join(
        f'<li><img src="{data_uri(patch.pixels)}" width="{patch.pixels.shape[1]}" height="{patch.pixels.shape[0]}"'
        f' loading="lazy" alt="Patch at {patch.mpp:g} um/px, {patch.foreground:.0%} foreground"'
        f' style="border-color:{colour}"><small>{patch.foreground:.0%} foreground</small>'
        f"<small>x {patch.x_level0_px}, y {patch.y_level0_px}</small></li>"
        for patch in patches
    )
    side_um = patches[0].pixels.shape[1] * mpp
    heading = f"{mpp:g} um/px <small>patches {side_um:g} um wide</small>"
    return (
        f'<h3><span class="swatch" style="border-color:{colour}"></span>{heading}</h3><ul class="patches">{shown}</ul>'
    )


_STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--quiet:#5b6570;--ground:#fff;--card:#f5f6f8;--line:#d9dde2;--warn:#9a3a00;
--tissue:#008a3e;--link:#0b5cad}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--quiet:#9aa5b1;--ground:#15181c;--card:#1f2329;--line:#363c45;
--warn:#ffab70;--link:#7ab8ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.5rem;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:36px 0 12px;overflow-wrap:anywhere}
h3{font-size:1rem;margin:24px 0 8px;display:flex;align-items:center;gap:8px;flex-wrap:wrap}
h3 small{font-weight:400}
a{color:var(--link)}small,.quiet,caption{color:var(--quiet);overflow-wrap:anywhere}
.warn{color:var(--warn)}p{margin:4px 0 12px}
ul{list-style:none;margin:0;padding:0}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}
.sheet li{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:8px;display:flex;
flex-direction:column;min-width:0;overflow-wrap:anywhere}
.sheet .overview{height:150px;width:100%;margin-bottom:6px}
.sheet .outline{stroke-width:1.2}.sheet .halo{stroke-width:2.4}
.slide{display:grid;grid-template-columns:minmax(0,2fr) minmax(240px,1fr);gap:24px;align-items:start}
.overview{display:block;max-width:100%;max-height:78vh;margin:0 auto}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:6px;padding:8px}
.missing{display:grid;place-items:center;min-height:150px;color:var(--quiet)}
.outline,.halo{fill:none;stroke:var(--tissue);stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.halo{stroke:#fff;stroke-width:4.5;opacity:.75}
.box{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;padding:8px 2px 0}.legend li{display:flex;align-items:center;gap:6px}
.swatch{width:14px;height:14px;border:3px solid;display:inline-block;flex:none}.tissue{border-color:var(--tissue);
border-radius:50%}
table{border-collapse:collapse;width:100%}caption{text-align:left;padding-bottom:4px}
th,td{text-align:left;vertical-align:top;padding:5px 8px 5px 0;border-top:1px solid var(--line);overflow-wrap:anywhere}
th{font-weight:600;white-space:nowrap}
.patches{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:10px}
.patches img{display:block;width:100%;height:auto;border:3px solid;border-radius:3px;image-rendering:auto}
.patches small{display:block;line-height:1.35}
@media(max-width:720px){.slide{grid-template-columns:minmax(0,1fr)}.patches{grid-template-columns:repeat(auto-fill,
minmax(96px,1fr))}.sheet{grid-template-columns:repeat(2,minmax(0,1fr))}}
""".replace("\n", "")
