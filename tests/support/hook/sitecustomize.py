"""Installs the audit hook. Python imports a module of this name at its start, also in ranks and data workers."""

import sys

from network_notes import note_network

sys.addaudithook(note_network)
