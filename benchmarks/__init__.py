"""How fast Keysmith is: each thing it does, beside the bare thing it is made of, and its peers.

`make bench` runs it all. Targets are in `targets.py`, what is measured in `cases.py`.
"""
