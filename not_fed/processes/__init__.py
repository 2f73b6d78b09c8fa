"""Flower's programs, and how they are started, watched and stopped; knows their command lines, never imports Flower."""
