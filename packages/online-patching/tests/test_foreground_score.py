"""Scores on real thumbnails, whatever the folder holds: the network against the rules.

None of these images trained the network or chose its threshold (see its model card).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from online_patching.tissue import METHODS, UNET_FILE, tissue_finder
from score_foreground import REGIONS_FILE, SpotScore, auc, filled, region_shares, spot_scores, tile_shares
from shared_fixtures import real_folder

pytestmark = pytest.mark.foreground_score

MAX_KEPT_OF_NO_TISSUE = 0.02
MIN_KEPT_OF_TISSUE = 0.95
# By their names and by eye; an unknown tile is run, and nothing is asked of its share.
NO_TISSUE_TILES = ("almost-white-1", "no-tissue")


def data() -> Path:
    folder = real_folder("DATA_DIR")
    if folder is None or not (folder / "foreground").is_dir():
        pytest.skip("no DATA_DIR with a folder foreground")
    return folder / "foreground"


@pytest.fixture(scope="module")
def spots() -> dict[str, list[SpotScore]]:
    folders = sorted(data().glob("humanpilot_*"))
    assert folders, f"{data()}: no humanpilot_* folders"
    return {
        method: [spot_scores(folder, finder) for folder in folders]
        for method in METHODS
        for finder in [tissue_finder(method)]
    }


def test_the_network_ranks_spots_at_least_as_well_as_grey_otsu(spots: dict[str, list[SpotScore]]) -> None:
    areas = {method: float(np.mean([score.auc for score in scores])) for method, scores in spots.items()}
    assert areas["unet"] >= areas["grey"], areas
    assert areas["grey"] > 0.93, "the yardstick itself changed"


def test_the_mask_at_the_spots_beats_the_rules_of_colour(spots: dict[str, list[SpotScore]]) -> None:
    """Grey Otsu is somewhat better there: the figures stand in the model card."""
    accuracy = {m: float(np.mean([score.balanced_accuracy for score in scores])) for m, scores in spots.items()}
    assert accuracy["unet"] > 0.92, accuracy
    assert accuracy["unet"] > max(accuracy["saturation"], accuracy["stain"]), accuracy


def test_tiles_without_tissue_are_dropped() -> None:
    """Red pen out of focus among them."""
    shares = {method: tile_shares(data() / "tiles", tissue_finder(method)) for method in METHODS}
    assert shares["unet"], "no tiles"
    for name, share in shares["unet"].items():
        if name.startswith(NO_TISSUE_TILES):
            assert share <= MAX_KEPT_OF_NO_TISSUE, (name, share)
    for method in ("saturation", "grey"):
        kept = [share for name, share in shares[method].items() if name.startswith(NO_TISSUE_TILES)]
        assert max(kept) > MAX_KEPT_OF_NO_TISSUE, method


def test_tiles_of_tissue_are_kept_where_grey_otsu_drops_some() -> None:
    """But for the tile of loose tissue: its share stands in the model card."""
    shares = {method: tile_shares(data() / "tiles", tissue_finder(method)) for method in METHODS}
    for name in (each for each in shares["unet"] if each.startswith(("high-nuclei", "tissue-level0"))):
        assert shares["unet"][name] >= MIN_KEPT_OF_TISSUE, (name, shares["unet"][name])
        assert shares["grey"][name] < MIN_KEPT_OF_TISSUE, name


def test_of_pen_less_is_kept_than_by_any_rule() -> None:
    regions = json.loads(REGIONS_FILE.read_text())
    found = {m: region_shares(data() / "penmarks", tissue_finder(m), regions) for m in METHODS}
    assert found["unet"], "no thumbnails with pen"
    pen = {m: [s["pen"] for s in shares.values() if "pen" in s] for m, shares in found.items()}
    tissue = {m: [s["tissue"] for s in shares.values() if "tissue" in s] for m, shares in found.items()}
    assert np.mean(tissue["unet"]) > 0.95, found["unet"]
    for method in METHODS[1:]:
        assert np.mean(pen[method]) > np.mean(pen["unet"]), (method, pen)


def test_the_model_card_lists_what_scored_and_what_trained() -> None:
    card = UNET_FILE.with_suffix(".md").read_text()
    for part in ("humanpilot_*", "tiles", "penmarks", "No real image trained it"):
        assert part in card, part


def test_auc_is_the_chance_of_the_right_order() -> None:
    rng = np.random.default_rng(0)
    truth, values = rng.random(60) < 0.4, rng.integers(0, 9, 60).astype(np.float64)
    above = values[truth][:, None] > values[~truth][None]
    level = values[truth][:, None] == values[~truth][None]
    assert auc(truth, values) == pytest.approx(float((above + 0.5 * level).mean()))


def test_regions_have_holes() -> None:
    ring = [[[0, 0], [20, 0], [20, 20], [0, 20]], [[5, 5], [15, 5], [15, 15], [5, 15]]]
    mask = filled((30, 30), [ring])
    assert mask[2, 2]
    assert not mask[10, 10]
    assert not mask[25, 25]
