"""Each unit's gradient, clipped and summed: `engine` says what an engine is, chooses one and checks it on every run.

book_keeping  one forward and one backward pass       traces    what a linear layer, router or norm leaves behind
per_record    the loop that needs no rule             experts   the same for GPT-OSS experts and sinks
opacus_hooks  another library's hooks, to compare     matrices  norms of per-unit gradients, by the cheaper way
trainable     whose the trained weights are, and what no engine can clip

This file imports nothing.
"""
