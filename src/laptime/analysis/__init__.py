"""From run directories to tables: what a sweep says. Loads no torch and knows nothing of training but its record."""
