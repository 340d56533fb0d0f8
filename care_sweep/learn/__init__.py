"""One CARE trial: objective, views, encoder, data, training, evaluation and checkpoint.

Knows nothing of Ray, Optuna, SQL and HTTP.
"""
