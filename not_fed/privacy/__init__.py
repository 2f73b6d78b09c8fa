"""What a site adds to training so that no single record or person shows, and the account of it.

dp_sgd, sampling, noise, randomness   one step: who joins, the clip, the noise, and where its randomness comes from
engine/                               each unit's gradient, clipped and summed, in every family
accounting, mechanisms                a plan and its epsilon (PLD); renyi, crosscheck, groups: other counts beside it
ledger/                               what records have spent, on disk, and the hard stop
audit/                                the attack that every private training carries
release                               numbers that leave with noise

This file imports nothing, so that the accounts load without torch.
"""
