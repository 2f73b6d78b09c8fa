"""Who belongs: the roster that stewards sign and every site checks for itself, without a network."""
