"""The model card: what was measured on validation images stands apart from what training reported."""

from care_sweep.learn.model_card import model_card
from care_sweep.spec import TrialConfig


def test_training_losses_are_no_measures() -> None:
    metrics = {
        "validation_knn_accuracy": 0.5,
        "relative_equivariance": 0.25,
        "num_validation_images": 400.0,
        "train_loss": 1.5,
        "train_info_nce": 1.25,
    }
    card = model_card(TrialConfig(), metrics, ["cat", "dog"])
    measured, training = card.partition("## Measured")[2].split("## Training losses")
    training = training.partition("## Trained with")[0]
    assert "On 400 validation images" in measured
    assert "num_validation_images" not in card
    assert "train_" not in measured
    assert measured.index("| relative_equivariance | 0.25 |") < measured.index(
        "| validation_knn_accuracy | 0.5 |"
    )
    assert "features of clean images, with labels, from weights of 0" in card
    assert "| train_info_nce | 1.25 |\n| train_loss | 1.5 |" in training
