"""From a run's settings to a trained model."""
