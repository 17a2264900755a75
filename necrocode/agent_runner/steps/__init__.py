"""The verbs of a run, one file each, in this order.

``lease`` → ``allocate`` → ``generate`` → ``apply`` → ``run_tests`` → ``deliver`` → ``upload`` → ``report``.

Each is a function of its inputs; the orchestrator alone knows the order.
"""
