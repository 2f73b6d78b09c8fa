"""Comparisons in one run on one machine: ratios, spread, and rows that we lose."""
