from __future__ import annotations

import hashlib

import numpy as np
import pytest
import shapely
from online_patching import Catalog
from online_patching.catalog_files import FOREGROUND, CatalogFolder
from online_patching.sampler import PatchSampler
from online_patching.slide_row import SlideRow
from online_patching.slide_table import SlideTable

SIDE_PX = 20_000


def ring(rng: np.random.Generator, x: int, y: int, radius: int) -> list[tuple[int, int]]:
    """A star-shaped ring of whole pixels, so that no library's rounding decides a draw."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radii = radius * rng.uniform(0.6, 1.0, 40)
    return [(x + int(r * np.cos(a)), y + int(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def tissue(rng: np.random.Generator) -> shapely.Geometry:
    """Two pieces, one with a hole."""
    first = shapely.Polygon(ring(rng, 6000, 7000, 5000), [ring(rng, 6000, 7000, 1500)])
    return shapely.MultiPolygon([first, shapely.Polygon(ring(rng, 15_000, 14_000, 3000))])


@pytest.fixture(scope="module")
def catalog_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Nine slides of three base resolutions that exist in the catalog only: drawing reads no slide."""
    folder = CatalogFolder(str(tmp_path_factory.mktemp("drawn")))
    folder.create()
    rows = []
    for number in range(9):
        polygon = tissue(np.random.default_rng(number))
        row = SlideRow(
            id=f"slide {number}",
            url=f"/nowhere/{number}.svs",
            size=1,
            version="v",
            vendor="aperio",
            mpp=(0.2465, 0.2525, 0.5)[number % 3],
            width_px=SIDE_PX,
            height_px=SIDE_PX,
            levels=3,
            coarsest_downsample=16.0,
            tiles=1,
            front_bytes=1,
            foreground_area_level0_px2=float(polygon.area),
        )
        folder.write_slide_file(row, FOREGROUND, shapely.to_wkb(polygon))
        rows.append(row)
    folder.write_table(SlideTable.from_rows(rows))
    return folder.url


@pytest.mark.parametrize(
    ("mpp", "slide_sampling", "expected"),
    [
        ([0.25], "uniform", "97e69231de2820d1"),
        ([2.0, 1.0, 0.5, 0.25], "uniform", "0693fbb9fca0156f"),
        ([1.0, 0.25], "area", "c33a96937e273992"),
    ],
)
def test_the_draws_of_a_seed_never_change(
    catalog_url: str, mpp: list[float], slide_sampling: str, expected: str
) -> None:
    """Streams are resumed, and papers repeated, by their numbers: a faster draw must be the same draw."""
    sampler = PatchSampler(
        Catalog.open(catalog_url),
        size_px=256,
        mpp=mpp,
        min_foreground=0.4,
        seed=11,
        slide_sampling=slide_sampling,  # type: ignore[arg-type]
    )
    digest = hashlib.sha256()
    for index in [*range(300), 2**40]:
        for attempt in (0, 1):
            s = sampler.draw(index, attempt)
            place = s.position
            facts = (s.index, s.attempt, s.slide_id, s.mpp, place.x_level0_px, place.y_level0_px)
            digest.update(f"{facts} {place.foreground:.6f}\n".encode())
    assert digest.hexdigest()[:16] == expected
