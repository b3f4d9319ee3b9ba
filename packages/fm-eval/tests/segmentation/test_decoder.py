from __future__ import annotations

import pytest
import torch
from fm_eval import SegmentationError
from fm_eval.segmentation import MaskDecoder, SegmentSettings
from fm_eval.segmentation.attention import DecoderLayer, sine_positions
from fm_eval.segmentation.settings import build_decoder


def small(**sizes: int) -> MaskDecoder:
    return MaskDecoder(**{"embed_dim": 16, "grid": 4, "classes": 3, "window_px": 32, "points": 64, **sizes})


@pytest.mark.parametrize(
    ("grid", "window", "finest"), [(14, 224, 56), (28, 224, 56), (16, 224, 64), (7, 224, 56), (8, 32, 8)]
)
def test_masks_are_as_fine_as_four_pixels(grid: int, window: int, finest: int) -> None:
    decoder = small(grid=grid, window_px=window, decoder_layers=2)
    kinds, masks = decoder(torch.randn(1, 16, grid, grid))
    assert kinds.shape == (3, 1, 32, 4)  # first guess and two layers; one class more is "none"
    assert masks.shape == (3, 1, 32, finest, finest)
    assert decoder.scores(torch.randn(1, 16, grid, grid), size_px=window).shape == (1, 3, window, window)


def test_the_size_is_that_of_the_paper() -> None:
    decoder = build_decoder(SegmentSettings(), embed_dim=384, grid=28, classes=5, run=0)
    assert isinstance(decoder, MaskDecoder)
    assert (len(decoder.encoder), decoder.encoder[0].attention.heads, tuple(decoder.query.shape)) == (4, 4, (32, 32))
    assert len(decoder.decoder) == 9
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 236_198


def test_scores_are_the_sum_over_queries_of_class_times_mask() -> None:
    torch.manual_seed(0)
    decoder, tokens = small().eval(), torch.randn(2, 16, 4, 4)
    kinds, masks = decoder(tokens)
    expected = torch.zeros(2, 3, 8, 8)
    for query in range(32):
        share = kinds[-1][:, query].softmax(-1)[:, :3]
        expected += share[:, :, None, None] * masks[-1][:, query].sigmoid()[:, None]
    torch.testing.assert_close(decoder.scores(tokens, size_px=8), expected)


def test_queries_look_only_where_they_may() -> None:
    """Tokens outside its mask do not change a query; a query whose mask is empty looks everywhere."""
    torch.manual_seed(0)
    layer, queries, positions = DecoderLayer(8, 2, 16), torch.randn(1, 1, 8), torch.zeros(4, 8)
    tokens, allowed = torch.randn(1, 4, 8), torch.tensor([[[True, True, False, False]]])
    outside, inside = tokens.clone(), tokens.clone()
    outside[0, 2:] += 1
    inside[0, :1] += 1
    run = [layer(queries, torch.zeros(1, 8), each, positions, allowed) for each in (tokens, outside, inside)]
    assert torch.equal(run[0], run[1])
    assert not torch.allclose(run[0], run[2])

    from fm_eval.segmentation.decoder import _seen

    masks = torch.full((1, 2, 4, 4), -1.0)
    masks[0, 1, :2, :2] = 1.0
    assert _seen(masks, 2).tolist() == [[[True] * 4, [True, False, False, False]]]


def test_positions_tell_rows_from_columns_and_agree_between_sides() -> None:
    fine, coarse = sine_positions(8, 32).unflatten(0, (8, 8)), sine_positions(4, 32).unflatten(0, (4, 4))
    assert len(torch.unique(fine.flatten(0, 1), dim=0)) == 64
    torch.testing.assert_close(fine[1::2, 1::2], coarse)
    torch.testing.assert_close(fine[3, :, :16], fine[3, :1, :16].expand(8, -1))  # y alone in the first half


def test_first_weights_depend_on_seed_and_run_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, other = (
        build_decoder(SegmentSettings(), embed_dim=16, grid=4, classes=3, run=run).state_dict() for run in (0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again = build_decoder(SegmentSettings(), embed_dim=16, grid=4, classes=3, run=0).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["query"], other["query"])


@pytest.mark.parametrize("sizes", [{"width": 30}, {"classes": 33}, {"decoder_layers": 0}, {"heads": 5}])
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(SegmentationError, match="multiple of heads and of 4"):
        small(**sizes)


@pytest.mark.parametrize("name", ["mask2former", "linear", "conv"])
def test_every_decoder_learns_a_pattern_that_the_tokens_hold(name: str) -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (4, 4, 4))
    tokens = torch.nn.functional.one_hot(labels, 16).permute(0, 3, 1, 2).float() * 3
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    settings = SegmentSettings(decoder=name, window_px=32, stride_px=32, decoder_layers=2, points=64)
    decoder = build_decoder(settings, embed_dim=16, grid=4, classes=3, run=0)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    for step in range(70):
        optimizer.zero_grad()
        decoder.loss(tokens, labels, torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = decoder.scores(tokens, size_px=32).argmax(1)
    assert (predicted == labels).float().mean() > 0.85
