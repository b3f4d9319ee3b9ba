from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from online_patching import Catalog, CatalogError, SamplingError
from online_patching.catalog_files import FOREGROUND, CatalogFolder
from online_patching.sampler import PatchSampler
from online_patching.slide_choice import ByGroup, ByWeight
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


def slide_row(name: str, polygon: shapely.Geometry, mpp: float, columns: dict[str, Any] | None = None) -> SlideRow:
    """The row of a slide that exists in the catalog only."""
    return SlideRow(
        id=name,
        url=f"/nowhere/{name}.svs",
        size=1,
        version="v",
        vendor="aperio",
        mpp=mpp,
        width_px=SIDE_PX,
        height_px=SIDE_PX,
        levels=3,
        coarsest_downsample=16.0,
        tiles=1,
        front_bytes=1,
        foreground_area_level0_px2=float(polygon.area),
        columns=columns or {},
    )


@pytest.fixture(scope="module")
def catalog_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Nine slides of three base resolutions that exist in the catalog only: drawing reads no slide."""
    folder = CatalogFolder(str(tmp_path_factory.mktemp("drawn")))
    folder.create()
    rows = []
    for number in range(9):
        polygon = tissue(np.random.default_rng(number))
        columns: dict[str, Any] = {"prior": number, "label": "rare" if number < 2 else "common"}
        if number != 4:
            columns["site"] = "a"
        row = slide_row(f"slide {number}", polygon, (0.2465, 0.2525, 0.5)[number % 3], columns)
        folder.write_slide_file(row, FOREGROUND, shapely.to_wkb(polygon))
        rows.append(row)
    folder.write_table(SlideTable.from_rows(rows))
    return folder.url


@pytest.mark.parametrize(
    ("mpp", "slide_sampling", "expected"),
    [
        ([0.25], "uniform", "b3b10be00c6b5a2e"),
        ([2.0, 1.0, 0.5, 0.25], "uniform", "5f625f9363e85b20"),
        ([1.0, 0.25], "area", "819c1b25b33f4ba0"),
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


def make(catalog_url: str, **arguments: Any) -> PatchSampler:
    return PatchSampler(
        Catalog.open(catalog_url), **{"size_px": 256, "mpp": [1.0], "min_foreground": 0.4, "seed": 1, **arguments}
    )


def counts(sampler: PatchSampler, draws: int = 3000) -> Counter[str]:
    return Counter(sampler.slide_of(index) for index in range(draws))


@dataclass(frozen=True)
class OnlyLast:
    """A choice of one's own."""

    slides: int = 1

    def weights(self, rows: SlideTable, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return (np.arange(len(numbers)) >= len(numbers) - self.slides).astype(np.float64)


def test_slides_are_drawn_by_their_weights_or_groups(catalog_url: str) -> None:
    by_weight = counts(make(catalog_url, slide_sampling=ByWeight("prior")))
    assert "slide 0" not in by_weight, "its weight is 0"
    # Weights 0 to 8.
    for number in range(1, 9):
        assert abs(by_weight[f"slide {number}"] - 3000 * number / 36) < 5 * np.sqrt(3000 * number / 36)
    by_group = counts(make(catalog_url, slide_sampling=ByGroup("label")))
    # Two of nine slides are "rare".
    rare = by_group["slide 0"] + by_group["slide 1"]
    assert abs(rare - 1500) < 5 * np.sqrt(750)
    assert abs(by_group["slide 0"] - 750) < 5 * np.sqrt(600)
    assert abs(by_group["slide 5"] - 1500 / 7) < 5 * np.sqrt(200)
    assert set(counts(make(catalog_url, slide_sampling=OnlyLast(2)))) == {"slide 7", "slide 8"}
    copy = pickle.loads(pickle.dumps(make(catalog_url, slide_sampling=OnlyLast(2))))
    assert copy.draw(7) == make(catalog_url, slide_sampling=OnlyLast(2)).draw(7)


def test_groups_are_balanced_over_the_slides_that_take_part(catalog_url: str) -> None:
    # 0.2 um/px leaves the three slides of 0.5 out.
    sampler = make(catalog_url, mpp=[0.25], slide_sampling=ByGroup("label"))
    assert len(sampler.served) == 6
    share = sum(sampler.weights[:2]) / sum(sampler.weights)
    assert share == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("choice", "error", "reason"),
    [
        (ByGroup("patient"), CatalogError, "no catalog column 'patient'"),
        (ByGroup("site"), CatalogError, "slide 4: catalog column 'site' has no value"),
        (ByWeight("label"), CatalogError, "slide 0: column 'label' holds 'rare'"),
        (OnlyLast(0), ValueError, "not all 0"),
        ("best", ValueError, "slide_sampling: got 'best'"),
        (object(), ValueError, "slide_sampling: got"),
    ],
)
def test_choices_that_do_not_fit_are_refused(
    catalog_url: str, choice: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        make(catalog_url, slide_sampling=choice)


def test_magnifications_are_drawn_by_their_weights(catalog_url: str) -> None:
    sampler = make(catalog_url, mpp=[2.0, 1.0, 0.25], mpp_weights=[1, 2, 5])
    drawn: dict[bool, Counter[float]] = {True: Counter(), False: Counter()}
    for index in range(4000):
        sample = sampler.draw(index)
        drawn[sample.slide_id in ("slide 2", "slide 5", "slide 8")][sample.mpp] += 1
    fine, coarse = drawn[False], drawn[True]
    assert set(coarse) == {2.0, 1.0}, "0.5 um/px does not serve 0.25"
    assert coarse[1.0] / coarse.total() == pytest.approx(2 / 3, abs=0.06)
    assert fine[0.25] / fine.total() == pytest.approx(5 / 8, abs=0.05)
    assert coarse.total() == pytest.approx(4000 / 3, abs=150), "as often as the others, whatever it lacks"


def test_a_range_of_magnifications_is_uniform_in_its_logarithm_within_what_a_slide_serves(catalog_url: str) -> None:
    sampler = make(catalog_url, mpp=(), mpp_range=(0.25, 2.0))
    samples = [sampler.draw(index) for index in range(3000)]
    for names, least in ((("slide 0", "slide 3", "slide 6"), 0.25), (("slide 2", "slide 5", "slide 8"), 0.4)):
        mpp = np.log([s.mpp for s in samples if s.slide_id in names])
        assert np.exp(mpp.min()) >= least
        quarters = np.histogram(mpp, bins=4, range=(np.log(least), np.log(2.0)))[0]
        assert quarters.sum() == len(mpp) > 800
        assert abs(quarters - len(mpp) / 4).max() < 5 * np.sqrt(len(mpp) * 3 / 16)
    enlarged = make(catalog_url, mpp=(), mpp_range=(0.25, 0.3), on_missing_mpp="enlarge")
    assert len(enlarged.served) == 9
    assert len(make(catalog_url, mpp=(), mpp_range=(0.25, 0.3)).served) == 6
    with pytest.raises(CatalogError, match=r"slide 2 \(and 2 others\): 0.5 um/px at level 0 cannot serve 0.25"):
        make(catalog_url, mpp=(), mpp_range=(0.25, 0.5), on_missing_mpp="error")
    with pytest.raises(CatalogError, match=r"none of 9 slides serves patches of 256 px at 0\.1 to 0\.15 um/px"):
        make(catalog_url, mpp=(), mpp_range=(0.1, 0.15))


def test_a_range_ends_where_the_foreground_cannot_fill_a_patch(catalog_url: str) -> None:
    sampler = make(catalog_url, mpp=(), mpp_range=(1, 1000), min_foreground=0.4)
    for sample in map(sampler.draw, range(50)):
        row = sampler.catalog.row(sample.slide_id)
        assert row.mpp is not None
        assert row.foreground_area_level0_px2 is not None
        assert 0.4 * (256 * sample.mpp / row.mpp) ** 2 <= row.foreground_area_level0_px2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"mpp": [1.0, 2.0], "mpp_weights": [1.0]}, "mpp_weights: got .*allowed 2 numbers"),
        ({"mpp": [1.0], "mpp_weights": [0.0]}, "mpp_weights: got"),
        ({"mpp": (), "mpp_range": [2.0, 1.0]}, "mpp_range: got"),
        ({"mpp": (), "mpp_range": [1.0]}, "mpp_range: got"),
        ({"mpp": [1.0], "mpp_range": [1.0, 2.0]}, "mpp_range: got mpp"),
    ],
)
def test_magnifications_that_do_not_fit_are_refused(catalog_url: str, arguments: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(catalog_url, **arguments)


def test_a_slide_without_a_place_for_a_patch_is_counted_and_another_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Crumbs: large enough by their area, but nowhere together."""
    crumbs = shapely.MultiPolygon(
        [shapely.box(x, y, x + 100, y + 100) for x in range(0, 19_000, 1000) for y in range(0, 19_000, 1000)]
    )
    folder = CatalogFolder(str(tmp_path))
    folder.create()
    rows = [
        slide_row(name, polygon, 0.25)
        for name, polygon in (("crumbs", crumbs), ("whole", shapely.box(0, 0, 9000, 9000)))
    ]
    for row, polygon in zip(rows, (crumbs, shapely.box(0, 0, 9000, 9000)), strict=True):
        folder.write_slide_file(row, FOREGROUND, shapely.to_wkb(polygon))
    folder.write_table(SlideTable.from_rows(rows))
    sampler = make(str(tmp_path), mpp=[0.25])
    assert {sampler.draw(index).slide_id for index in range(40)} == {"whole"}
    assert list(sampler.impossible) == ["crumbs"]
    assert sampler.impossible["crumbs"] > 5
    assert caplog.text.count("slide crumbs: no patch of 256 level-0 pixels has 40% foreground") == 1
    with pytest.raises(SamplingError, match="sample 0: no patch"):
        make(str(tmp_path), mpp=[0.25], slide_sampling=OnlyFirst()).draw(0)


@dataclass(frozen=True)
class OnlyFirst:
    def weights(self, rows: SlideTable, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return (numbers == numbers[0]).astype(np.float64)
