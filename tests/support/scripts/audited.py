"""`audited.py SCRIPT_OR_MODULE ARGUMENTS` runs a script or module that logs its use of the network.

Forked processes inherit the audit hook. The log is the file that the variable ASKED names.
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
