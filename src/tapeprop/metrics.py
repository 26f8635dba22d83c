"""Figures of merit: functions (y_true, y_pred) -> float on NumPy arrays. `fit` and `evaluate` take them, or their names."""

from tapeprop.training.metrics import accuracy, mae, mse, r2, rmse, sign_accuracy, top5_accuracy

__all__ = ["accuracy", "mae", "mse", "r2", "rmse", "sign_accuracy", "top5_accuracy"]
