"""How nano was made: scenes, pretraining, its card."""
