"""Spaces that several tests of the search draw from."""

MIXED = {
    "temperature": {"type": "float", "low": 0.05, "high": 1.0, "log": True},
    "batch_size": {"type": "categorical", "choices": [64]},
    "warmup_epochs": {"type": "int", "low": 0, "high": 10},
    "encoder": {"type": "categorical", "choices": ["resnet18", "resnet50"]},
    "augmentation_strength": {"type": "float", "low": 0.0, "high": 1.5},
}
"""One of each kind, one of which has no choice."""
