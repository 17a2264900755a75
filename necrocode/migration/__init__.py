"""From the A2A/Kiro runner to this one: its settings file, its environment and the code that used it.

Nothing here prints, and nothing is written but by :mod:`necrocode.migration.files`.
"""
