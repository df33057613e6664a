"""Training of a model from the settings of a run."""
