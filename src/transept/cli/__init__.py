"""The `transept` command: one file for each verb."""
