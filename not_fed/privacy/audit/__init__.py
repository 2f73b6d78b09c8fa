"""The attack that every private training carries: `probe` plants and reads canaries, `bounds` says what they show.

`law` computes what the right code gives, `verdict` holds a recorded audit against its claim. All but the probe load
without torch. This file imports nothing.
"""
