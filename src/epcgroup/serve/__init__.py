"""A long-lived machine: its files mounted, its control socket open.

:class:`~.server.Server` runs it (``epcgroup serve``), :func:`~.client.execute`
runs a command inside it (``epcgroup exec``).
"""
