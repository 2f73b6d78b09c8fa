"""What a site adds to training so that no single record shows: clipping, noise, sampling and the account of it.

This file imports nothing, so that `accounting` loads without torch.
"""
