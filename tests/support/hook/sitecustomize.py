"""Python imports a module of this name when it starts, if it finds one: so do ranks and data workers."""

import sys

from network_notes import note_network

sys.addaudithook(note_network)
