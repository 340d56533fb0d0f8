#!/bin/sh
# Makes, once, what docker/compose.yaml needs and no repository holds: passwords in .env, Ray's token in secrets/ray_token, a place
# for Prometheus' and the folders of the object store and of Prometheus, all in this folder or in the one given. Only their owner, as whom the containers run, reads them.
set -eu
cd "${1:-$(dirname "$0")}"
umask 077
uid=$(id -u)
[ "$uid" -ne 0 ] || uid=10001 # no container runs as root
random() { od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n'; }

mkdir -p secrets state/s3 state/prometheus
[ -e secrets/metrics_token ] || : >secrets/metrics_token
[ -s secrets/ray_token ] || random >secrets/ray_token
[ -s .env ] || cat >.env <<END
CARE_SWEEP_UID=$uid
POSTGRES_PASSWORD=$(random)
S3_ACCESS_KEY=care-sweep
S3_SECRET_KEY=$(random)
GRAFANA_PASSWORD=$(random)
END
if [ "$(id -u)" -eq 0 ]; then chown -R "$uid:0" secrets state; fi
