"""Does the Ray node of this container answer? It does if this ends with status 0."""

import urllib.request

urllib.request.urlopen("http://127.0.0.1:52365/api/local_raylet_healthz", timeout=8).close()
