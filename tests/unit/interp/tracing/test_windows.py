"""Windows of blocks against ROME's formula."""

import pytest

from interp.tracing.windows import default_window, window


def test_window_is_that_of_rome_and_clipped_at_the_ends() -> None:
    for layer in range(48):
        expected = [
            i for i in range(layer - 5, layer + 5) if 0 <= i < 48
        ]  # causal_trace.py, window 10
        assert list(window(layer, 10, 48)) == expected
    assert (len(window(0, 10, 48)), len(window(20, 10, 48)), len(window(47, 10, 48))) == (5, 10, 6)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_window_has_its_width_and_holds_its_centre(width: int) -> None:
    for layer in range(12):
        got = window(layer, width, 12)
        assert layer in got
        assert len(got) == width or got[0] == 0 or got[-1] == 11
    assert list(window(6, 3, 12)) == [5, 6, 7]
    assert list(window(6, 1, 12)) == [6]


def test_default_window_is_a_share_of_the_depth_and_never_empty() -> None:
    assert [default_window(n) for n in (1, 2, 5, 12, 24, 30, 48, 96)] == [1, 1, 1, 2, 5, 6, 10, 20]
