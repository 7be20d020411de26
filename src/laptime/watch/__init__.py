"""python -m laptime.watch: how a sweep is getting on."""
