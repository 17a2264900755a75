"""What stands behind the URLs: each service is a thin HTTP shell over the embedded implementation of its Protocol.

Needs the extra ``necrocode[services]``.
"""
