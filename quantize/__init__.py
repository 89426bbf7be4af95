"""Schemes, plans and the search for the smallest model that still agrees with the reference."""
