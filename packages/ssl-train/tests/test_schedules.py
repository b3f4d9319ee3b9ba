from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssl_train.schedules import cosine, teacher_temperature


def test_warm_up_holds_both_ends() -> None:
    values = [cosine(i, base=1.0, final=0.1, total_steps=20, warmup_steps=5) for i in range(20)]
    assert values[:6] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert values[-1] > 0.1
    assert cosine(20, base=1.0, final=0.1, total_steps=20) == 0.1


@given(st.integers(1, 500), st.data())
def test_cosine_stays_between_its_ends_and_falls_after_the_warm_up(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total))
    values = [cosine(i, base=0.4, final=0.04, total_steps=total, warmup_steps=warmup) for i in range(total + 1)]
    assert all(0 <= v <= 0.4 for v in values)
    after = values[warmup:]
    assert all(a >= b for a, b in pairwise(after))


def test_half_way_is_the_mean() -> None:
    assert cosine(50, base=2.0, final=1.0, total_steps=100) == pytest.approx(1.5)
    quarter = 1.0 + 0.5 * (1 + math.cos(math.pi / 4))
    assert cosine(25, base=2.0, final=1.0, total_steps=100) == pytest.approx(quarter)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="raise max_steps"):
        cosine(0, base=1.0, final=0.0, total_steps=10, warmup_steps=11)


def test_teacher_temperature_moves_by_epoch() -> None:
    temps = [teacher_temperature(e, warmup=0.04, final=0.07, warmup_epochs=4) for e in range(6)]
    assert temps == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert teacher_temperature(0, warmup=0.04, final=0.07, warmup_epochs=0) == 0.07
