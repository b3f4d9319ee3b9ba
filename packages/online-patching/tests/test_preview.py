from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from online_patching import Catalog, CatalogError
from online_patching.cli import main
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.preview import preview_html
from online_patching.preview_page import ShownSlide, outline_path, page
from written_slides import tissue_image, write_pyramid

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page, checked for being closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [facts for name, facts in self.elements if name == tag and facts.get("class", "") == kind]


def test_a_page_shows_slides_patches_and_what_is_not_served(catalog: Catalog) -> None:
    text = preview_html(catalog, mpp=[2.0, 0.5], size_px=128, patches=3, slides=["a"], sheet_slides=2)
    shown = Page(text)
    assert re.search(r"(src|href)=\"(?!data:image/jpeg;base64,|#)", text) is None, "nothing from elsewhere"
    assert "<script" not in text
    assert "url(" not in text
    words = " ".join(shown.words)
    row = catalog.row("a")
    assert f"{row.foreground_area_level0_px2 / (row.width_px * row.height_px):.1%} of the slide" in words
    assert f"{row.foreground_area_mm2:.2f} mm²" in words
    assert "p-a" in words, "the user's columns"
    assert "1 more slides are in the catalog" in words
    # Two pictures on the sheet, one at length; three patches of each magnification, each with its box.
    assert len(shown.all("svg", "overview")) == 3
    assert all(picture["aria-label"] for picture in shown.all("svg", "overview"))
    patches = shown.all("img")
    assert [re.sub(r", \d+% foreground", "", patch["alt"]) for patch in patches] == [
        *["Patch at 0.5 um/px"] * 3,
        *["Patch at 2 um/px"] * 3,
    ]
    boxes = shown.all("rect", "box")
    assert len(boxes) == 6
    assert len({box["style"] for box in boxes}) == 2, "a colour a magnification"
    # The box lies where the patch was taken.
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(patches[0]["src"].partition(",")[2]), np.uint8), 1)[..., ::-1]
    corner = re.search(r"x (\d+), y (\d+)", words)
    assert corner is not None
    x, y = map(int, corner.groups())
    truth = catalog.slide("a").read_patch(x_level0_px=x, y_level0_px=y, size_px=128, mpp=0.5)
    assert np.abs(pixels.astype(int) - truth).mean() < 4
    scale = 1024 / 1500
    assert any((float(box["x"]), float(box["y"])) == pytest.approx((x * scale, y * scale), abs=0.06) for box in boxes)
    assert preview_html(catalog, mpp=[2.0, 0.5], size_px=128, patches=3, slides=["a"], sheet_slides=2) == text


def test_slides_that_cannot_be_shown_whole_say_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, image, mpp in (
        ("good", tissue_image(700, 600, 1), 0.5),
        ("glass", np.full((400, 500, 3), 243, np.uint8), 0.5),
        ("no_mpp", tissue_image(600, 600, 2), None),
        ("gone", tissue_image(600, 600, 3), 0.5),
    ):
        write_pyramid(tmp_path / f"{name}.svs", image, mpp=mpp)
    url = str(tmp_path / "c")
    index_cohort(sorted(map(str, tmp_path.glob("*.svs"))), url, progress=False)
    page_before = " ".join(Page(preview_html(Catalog.open(url), patches=2)).words)
    assert "foreground not found yet" in page_before
    compute_foreground(url, method="stain", progress=False)
    (tmp_path / "gone.svs").unlink()
    words = " ".join(Page(preview_html(Catalog.open(url), patches=2, size_px=64, mpp=[1.0, 0.125])).words)
    assert "no foreground" in words
    assert "1 um/px (too little foreground)" in words
    assert "0.125 um/px (finer than the slide)" in words
    assert "its um/px are not known" in words
    assert "It cannot be read" in words
    assert "no picture" in words


def test_names_and_columns_are_escaped() -> None:
    evil = '<script>alert("&")</script>'
    slide = ShownSlide(evil, None, 10, 10, shapely.MultiPolygon(), evil, {evil: evil}, {}, (evil,))
    text = page(evil, evil, [slide], [slide, slide], evil)
    Page(text)
    assert "<script" not in text


def test_an_outline_keeps_its_holes_as_a_path() -> None:
    outline = shapely.MultiPolygon([shapely.box(0, 0, 100, 100) - shapely.box(40, 40, 60, 60)])
    assert outline_path(outline, 0.5).count("M") == 2
    assert "50 0" in outline_path(outline, 0.5)
    assert outline_path(shapely.MultiPolygon(), 1.0) == ""


def test_the_command_writes_a_page_or_a_picture(
    catalog_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "p.html"
    command = ["preview", "--catalog", catalog_url, "--size-px", "64", "--mpp", "1.0"]
    assert main([*command, "--output", str(output), "--slides", "b", "--sheet", "1", "--patches", "2"]) == 0
    shown = Page(output.read_text(encoding="utf-8"))
    assert len(shown.all("img")) == 2
    assert output.stat().st_size < 200_000
    picture = tmp_path / "p.png"
    assert main([*command, "--output", str(picture)]) == 0
    # Eight of each magnification, 64 px and a gap each, below as many thumbnails as slides.
    assert cv2.imread(str(picture)).shape == (136 + 68, 544, 3)
    assert main([*command, "--output", str(picture), "--sheet", "1", "--patches", "11"]) == 0
    assert cv2.imread(str(picture)).shape == (544 + 2 * 68, 544, 3)
    for wrong, reason in (
        (["--output", str(tmp_path / "p.gif")], "allowed a file named .html"),
        (["--output", str(tmp_path / "none" / "p.html")], "cannot be written"),
        (["--output", str(output), "--patches", "-1"], "patches: got -1"),
        (["--output", str(picture), "--patches", "0"], "patches of a picture: got 0, allowed at least 1"),
        (["--output", str(picture), "--sheet", "0"], "slides of a picture: got 0, allowed at least 1"),
        (["--output", str(picture), "--slides", "a"], "--slides goes with an .html page"),
        (["--output", str(output), "--slides", "nobody"], "nobody"),
    ):
        assert main([*command, *wrong]) == 2
        assert reason in capsys.readouterr().err


def test_an_unknown_slide_is_refused(catalog: Catalog) -> None:
    with pytest.raises(CatalogError, match="nobody"):
        preview_html(catalog, slides=["nobody"])
