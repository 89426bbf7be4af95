"""Text or pixels in, results out: one module a task."""
