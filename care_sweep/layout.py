"""Where do a sweep's files lie below `storage_uri`? The driver writes them there, the service serves them."""

from pathlib import Path

__all__ = ["discard_training_states", "sweep_directory", "trial_directory"]


def sweep_directory(storage: Path, sweep_id: str) -> Path:
    """A sweep's own folder: its driver's log, and its trials."""
    return storage / "sweeps" / sweep_id


def trial_directory(storage: Path, sweep_id: str, number: int) -> Path:
    """A trial's folder: one `attempt-K` an attempt, each with its log, training states and checkpoint."""
    return sweep_directory(storage, sweep_id) / "trials" / f"{number:05d}"


def discard_training_states(directory: Path, *, keep: Path | None = None) -> None:
    """Delete the training states anywhere below a sweep's or a trial's folder, but for `keep`."""
    for state in directory.rglob("state-*.pt"):
        if state != keep:
            state.unlink(missing_ok=True)
