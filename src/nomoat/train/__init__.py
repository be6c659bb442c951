"""Moving weights: the loop, the optimizers, the planner, the launchers."""
