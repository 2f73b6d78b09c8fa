"""The bank of sealed organs: ciphertext in chunks, in a folder or a bucket, beside the label that its sender signed."""

from __future__ import annotations

from not_fed.coordinator.bank.bank import ABANDONED_AFTER, Bank, BankDamaged, NotInBank, NotSealed, Stored

__all__ = ["ABANDONED_AFTER", "Bank", "BankDamaged", "NotInBank", "NotSealed", "Stored"]
