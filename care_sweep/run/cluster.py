"""How is the Ray cluster reached, and what does it look like from here?"""

import logging
import socket
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.services import get_webui_url_from_internal_kv

from care_sweep.errors import ClusterExposed
from care_sweep.memory import KEEPING_FREED_MEMORY
from care_sweep.run.exposure import refuse_open_cluster, refuse_open_dashboard, refuse_readable_token

__all__ = ["await_cluster", "connect", "describe"]

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.2

_WORKER_ENVIRONMENT = {
    **KEEPING_FREED_MEMORY,
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # at 2 s a trial slow to unwind leaks its slot
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def await_cluster(address: str) -> None:
    """Return once somebody listens at `address` ("host:port"): a Ray that starts, or is away, comes back."""
    host, _, port = address.rpartition(":")
    has_complained = False
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            if not has_complained:
                _LOG.info("waiting for Ray at %s: %s", address, error)
                has_complained = True
            time.sleep(_POLL_SECONDS)
        else:
            return


def connect(address: str) -> None:
    """Join the cluster at `address` ("host:port"), once; never guess one, it could be a stranger's.

    Raises:
        ConnectionError: nothing answers there, or the token is not the cluster's.
        ClusterExposed: the cluster wants no token, or others can read it.
    """
    if ray.is_initialized():
        return
    refuse_readable_token()
    ray.init(
        address=address,
        namespace="care-sweep",
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": _WORKER_ENVIRONMENT},
    )
    try:
        refuse_open_cluster(ray.get_runtime_context().gcs_address)
        if dashboard := _dashboard():
            refuse_open_dashboard(dashboard)
    except (ClusterExposed, ConnectionError):
        ray.shutdown()
        raise


def describe() -> Mapping[str, Any]:
    """Nodes, resources and the dashboard's address, as JSON."""
    nodes = [
        {
            "id": node["NodeID"],
            "host": node["NodeManagerHostname"],
            "is_alive": node["Alive"],
            "resources": _countable(node["Resources"]),
        }
        for node in ray.nodes()
    ]
    dashboard = _dashboard()
    return {
        "nodes": nodes,
        "resources": _countable(ray.cluster_resources()),
        "available": _countable(ray.available_resources()),
        "dashboard_url": f"http://{dashboard}" if dashboard else None,
        "ray_version": ray.__version__,
    }


def _dashboard() -> str | None:
    """Its "host:port"."""
    address: str | None = ray.get_runtime_context().worker.node.address_info.get("webui_url")
    if address is None:  # it was not up yet when this process joined
        address = get_webui_url_from_internal_kv()
    return address or None


def _countable(resources: Mapping[str, float]) -> dict[str, float]:
    shown = {
        "CPU": "cpus",
        "GPU": "gpus",
        "memory": "memory_bytes",
        "object_store_memory": "object_store_bytes",
    }
    return {shown[name]: amount for name, amount in resources.items() if name in shown}
