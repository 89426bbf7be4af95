"""An interpreter of Core ML ML Programs."""
