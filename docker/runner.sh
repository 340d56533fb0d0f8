#!/bin/bash
# The runner, beside a node of Ray that runs no trials: through it the runner and its drivers join the cluster.
# When either ends, the other is ended too, and so the container, which is started again. `runner.sh`, with RAY_ADDRESS.
set -euo pipefail

env -u CARE_SWEEP_DATABASE_URL ray start --address="$RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --block \
    --object-store-memory=100000000 --disable-usage-stats &
node=$!
until python /opt/care-sweep/node_healthy.py 2>/dev/null; do
    kill -0 $node || exit 1 # it did not find the cluster
    sleep 1
done
python -m care_sweep.run.runner &
runner=$!
trap 'kill -TERM $runner' TERM INT # it ends its drivers and lets go of their sweeps
status=0
wait -n $runner $node || status=$?
kill -TERM $runner 2>/dev/null || true
wait $runner || true
kill -TERM $node 2>/dev/null || true
wait $node || true
exit $status
