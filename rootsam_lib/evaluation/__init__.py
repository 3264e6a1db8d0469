"""Scores with intervals: protocols, simulated clicks, peers."""
