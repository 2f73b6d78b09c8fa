"""What runs at a data holder: its policy, its memory, its decisions, and the adapter to Flower."""
