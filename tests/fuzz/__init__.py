"""Long sweeps behind `make fuzz`."""
