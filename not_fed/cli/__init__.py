"""The command: words, exit codes, confirmations. It decides nothing; one file per group of commands."""
