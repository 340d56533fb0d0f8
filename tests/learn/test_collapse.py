"""What says that an encoder has collapsed, and what does not? test_measures has the measures themselves."""

import pytest

from care_sweep.learn.collapse import sign_of_collapse


@pytest.mark.parametrize(
    ("spread", "rank", "sign"),
    [
        (0.47, 56.0, None),  # an encoder before training
        (0.96, 49.0, None),  # SimCLR
        (0.49, 24.0, None),  # MoCo with L_equi
        (0.52, 13.0, None),  # Barlow Twins with L_equi
        (0.10, 17.0, "embedding_spread"),  # L_equi alone
        (0.02, 2.8, "embedding_spread"),  # alignment alone
        (0.50, 1.0, "effective_rank"),  # two opposite points
        (0.0, 0.0, "embedding_spread"),
    ],
)
def test_what_was_seen_is_told_apart(spread: float, rank: float, sign: str | None) -> None:
    found = sign_of_collapse({"embedding_spread": spread, "effective_rank": rank, "uniformity": 0.0})
    assert found is None if sign is None else found is not None and sign in found
