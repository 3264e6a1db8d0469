"""What a person runs: segment a folder, correct by clicking, export."""
