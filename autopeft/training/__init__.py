"""Training one trial on a resident base: model, recipe, loop. Knows no search, ledger, Ray, MLflow or Optuna."""
