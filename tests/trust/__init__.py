"""The table of bad inputs and faults (docs/bad-inputs.md), row by row, through the command line."""
