"""Is a Ray cluster open to whoever reaches it, or its token to whoever has an account here?

A cluster without tokens runs the code of anybody who can connect to it (CVE-2023-48022).
"""

import http.client
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import grpc

from care_sweep.errors import ClusterExposed

__all__ = ["refuse_open_cluster", "refuse_open_dashboard", "refuse_readable_token"]

_TIMEOUT_SECONDS = 10.0
_ANY_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first call of whoever joins a cluster; it changes nothing."""

_REMEDY = (
    "start every node of it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, and the runner too: without, "
    "whoever reaches this address runs code on the cluster (docs/security.md)"
)


def refuse_open_cluster(address: str) -> None:
    """Call the cluster's control service at "host:port" without a token.

    Where RAY_USE_TLS is set, nobody comes so far who has no certificate, and nothing is called.

    Raises:
        ClusterExposed: it answers.
        ConnectionError: it neither answers nor asks for a token.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ANY_CALL)(b"", timeout=_TIMEOUT_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return
            said = f"{error.code().name}: {error.details()}"
            raise ConnectionError(f"Ray at {address} does not say whether it wants a token: {said}") from None
    raise ClusterExposed(f"Ray at {address} answers without a token: {_REMEDY}")


def refuse_open_dashboard(address: str) -> None:
    """Ask the dashboard at "host:port" for the jobs, which who may see may also submit.

    One that cannot be reached from here is left alone: where tokens are wanted is the whole cluster's affair.

    Raises:
        ClusterExposed: it answers.
    """
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/api/jobs/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()
    if status == http.HTTPStatus.OK:
        raise ClusterExposed(f"Ray's dashboard at {address} lets anybody submit jobs: {_REMEDY}")


def refuse_readable_token(environment: Mapping[str, str] = os.environ) -> None:
    """See that nobody else may read or replace the file of the token that Ray will take.

    One that is another's to own, such as a mounted secret, may be readable by a group.

    Raises:
        ClusterExposed: somebody may.
    """
    if environment.get("RAY_AUTH_MODE") != "token" or environment.get("RAY_AUTH_TOKEN"):
        return
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        found = path.stat()
    except OSError:
        return  # what Ray says of that is plain
    forbidden = stat.S_IRWXO | (stat.S_IRWXG if found.st_uid == os.geteuid() else stat.S_IWGRP)
    if found.st_mode & forbidden:
        mode = stat.S_IMODE(found.st_mode)
        raise ClusterExposed(
            f"the token of Ray in {path} can be read or changed by others (mode {mode:o}): chmod 600 {path}"
        )
