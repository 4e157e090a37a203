"""The ground: trees, transforms, checks, hyperparameters, arithmetic. It knows no method."""
