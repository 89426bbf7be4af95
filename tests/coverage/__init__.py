"""Coverage: which pairs of architecture and task palmtop exports and verifies, and the tiny checkpoints that tell."""
