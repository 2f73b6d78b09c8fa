"""A site's account of what its records have spent, on disk: `ledger` reserves and refuses, the rest says how.

cap          the hard stop under adaptive choice      scope      which accounts speak for a data set
identity     records and people as keyed hashes       rows       the hash chain in SQLite
reservation  what a run may start, counted            book       what the rows say
statement    what is allowed, spent and left          check      is it whole, and the newest

Loads without torch. This file imports nothing.
"""
