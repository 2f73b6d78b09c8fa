"""Organs of several sites into one. Full weights, so their weighted mean is the exact FedAvg of the span."""
