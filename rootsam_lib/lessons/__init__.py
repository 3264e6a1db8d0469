"""What the notebooks share: figures, cost, checks, report, the runner."""
