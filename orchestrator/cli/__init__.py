"""The command line: commands, tables of results, lookups."""
