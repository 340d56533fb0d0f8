"""What to try next, and what was learnt: named spaces, Optuna by ask and tell, early stopping, analysis."""
