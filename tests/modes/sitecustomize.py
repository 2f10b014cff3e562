"""Imported by each interpreter that has this folder on its path: see heap_modes.py beside it."""

import heap_modes

if heap_modes.ASKED:
    heap_modes.make_all(heap_modes.ASKED)
