"""Training: configuration, feature bank, one step, the loop."""
