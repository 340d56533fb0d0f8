"""The best is never deleted, and what goes now would have gone later too."""

from hypothesis import given
from hypothesis import strategies as st

from care_sweep.search.analysis import FinishedTrial, best
from care_sweep.search.retention import CompleteTrial, surplus
from care_sweep.spec import TrialState

_TRIALS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=12
).map(lambda drawn: [CompleteTrial(n, value, base, f"key-{n}") for n, (value, base) in enumerate(drawn)])


def _ranked(trials: list[CompleteTrial]) -> list[int]:
    finished = [
        FinishedTrial(t.number, {}, TrialState.COMPLETE, t.value, t.is_baseline, num_validation_images=4)
        for t in trials
    ]
    return [one.number for one in best(finished)]


@given(trials=_TRIALS, num_kept=st.integers(1, 5))
def test_the_best_and_the_baselines_stay(trials: list[CompleteTrial], num_kept: int) -> None:
    gone = {trial.number for trial in surplus(trials, num_kept)}
    assert _ranked(trials)[0] not in gone
    assert not gone & {trial.number for trial in trials if trial.is_baseline}
    searched = [n for n in _ranked(trials) if not trials[n].is_baseline]
    assert gone == set(searched[num_kept:])
    assert surplus(trials, None) == []


@given(trials=_TRIALS, num_kept=st.integers(1, 5))
def test_dropping_as_trials_complete_leaves_what_dropping_at_the_end_would(
    trials: list[CompleteTrial], num_kept: int
) -> None:
    kept: list[CompleteTrial] = []
    for trial in trials:
        kept.append(trial)
        kept = [one for one in kept if one not in surplus(kept, num_kept)]
    assert set(kept) == set(trials) - set(surplus(trials, num_kept))
