"""What has a sweep found? The stored trials as the analysis takes them, and its answer as one document."""

from collections.abc import Sequence
from dataclasses import replace

from care_sweep.errors import NotFound
from care_sweep.search import analysis
from care_sweep.search.analysis import FinishedTrial
from care_sweep.spec import TrialState
from care_sweep.store import Store, TrialRecord
from service.schemas import Best

__all__ = ["best", "best_trial"]


def best(store: Store, sweep_id: str, k: int) -> Best:
    """The k best configurations beside the baselines, what mattered, and what that is worth.

    Raises:
        NotFound: there is no such sweep.
    """
    sweep = store.sweep(sweep_id)
    trials = _with_images(store, sweep_id, k, _finished(store, sweep_id))
    return Best(
        metric=sweep.spec.metric,
        configurations=analysis.best(trials, k),
        baselines=analysis.baselines(trials),
        comparisons=analysis.compare_with_baselines(trials),
        importance=analysis.parameter_importance(sweep.spec.space, trials),
        evidence=_evidence(trials, is_final=sweep.state.is_terminal),
    )


def best_trial(store: Store, sweep_id: str) -> TrialRecord:
    """The trial that ranks first so far.

    Raises:
        NotFound: there is no such sweep, or none of its trials is COMPLETE.
    """
    ranked = analysis.in_order(_finished(store, sweep_id))
    if not ranked:
        raise NotFound(f"no trial of sweep {sweep_id} is COMPLETE, so there is no best checkpoint yet")
    return store.trial(sweep_id, ranked[0].number)


def _finished(store: Store, sweep_id: str) -> Sequence[FinishedTrial]:
    return [
        FinishedTrial(
            number=outcome.number,
            values=outcome.parameters,
            state=outcome.state,
            value=outcome.value,
            is_baseline=outcome.is_baseline,
        )
        for outcome in store.outcomes(sweep_id)
    ]


def _with_images(
    store: Store, sweep_id: str, k: int, trials: Sequence[FinishedTrial]
) -> Sequence[FinishedTrial]:
    """The same trials: those that are shown say how many images they were measured on."""
    records = store.trials(sweep_id, numbers=analysis.shown(trials, k)).items
    num_images = {record.number: int(record.metrics.get("num_validation_images", 1)) for record in records}
    return [
        replace(trial, num_validation_images=num_images[trial.number])
        if trial.number in num_images
        else trial
        for trial in trials
    ]


def _evidence(trials: Sequence[FinishedTrial], *, is_final: bool) -> str:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if not complete:
        return "none yet: no trial is COMPLETE"
    so_far = "" if is_final else " so far"
    num_images = next(trial.num_validation_images for trial in complete if trial.num_validation_images)
    return (
        f"{len(complete)} COMPLETE of {len(trials)} finished trials{so_far}, each trained once with one seed "
        f"and measured on {num_images} validation images; a standard error speaks of these images, not of "
        "another seed, and the best was chosen by the value that is shown"
    )
