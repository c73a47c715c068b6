"""The web page: one machine in a browser, live, without a build step and without a network.

`hub` looks at the machine once a second, `access` decides who may see it, `app` is the
page's server (Starlette), `server` runs it (uvicorn), ``assets`` is all that a browser gets.
The plots are drawn by uPlot (MIT), which lies beside its licence in ``assets/uplot``.
"""

from epcgroup.observe.web.hub import Hub
from epcgroup.observe.web.server import WebServer

__all__ = ["Hub", "WebServer"]
