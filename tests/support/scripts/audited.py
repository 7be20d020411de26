"""A script or module whose processes note what they ask of the network: `audited.py SCRIPT_OR_MODULE ARGUMENTS`.

Each process that it forks has the hook too. The notes are in the file that the variable ASKED names.
"""

import runpy
import sys

from network_notes import note_network

sys.addaudithook(note_network)
subject = sys.argv.pop(1)
if subject.endswith(".py"):
    runpy.run_path(subject, run_name="__main__")
else:
    runpy.run_module(subject, run_name="__main__", alter_sys=True)
