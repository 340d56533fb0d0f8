"""A Ray cluster that is not there yet is waited for."""

import socket
import threading
import time

from care_sweep.run.cluster import await_cluster


def test_a_cluster_that_starts_later_is_waited_for() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        waiting = threading.Thread(target=await_cluster, args=[address], daemon=True)
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
        listener.listen()
        waiting.join(timeout=30)
        assert not waiting.is_alive()
