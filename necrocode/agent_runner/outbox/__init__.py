"""What runs have to tell, kept on disk until registry and store have it.

``spool`` is the file of one run, ``book`` what stands in it, ``delivery`` how it is sent, ``folder`` all of them.
"""
