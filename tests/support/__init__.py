"""What the tests share: commands that they start, overrides that make runs quick, and how to wait for something."""
