"""From what was typed to a checked configuration: keys, types, ranges, classes that may be named. Loads no torch."""
