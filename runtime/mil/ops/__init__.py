"""The operations of MIL, by family."""
