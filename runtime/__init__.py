"""What an app or a server needs to use a bundle. Imports no torch."""
