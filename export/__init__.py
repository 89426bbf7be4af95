"""From a checkpoint to a verified bundle: capture, lower, verify, pack, and the command line."""
