"""Text generation: a decoder captured with its key-value cache, by one route for every architecture."""
