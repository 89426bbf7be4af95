"""Text generation over exported decoders: caches, choosing tokens, beams, streaming, chat templates. No torch."""
