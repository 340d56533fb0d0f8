# Ray's head, Ray's workers and the runner: torch from its wheels for CUDA, Ray, PostgreSQL's and S3's clients.
#     docker build -f docker/worker.Dockerfile -t care-sweep-worker .
FROM python:3.11-slim-bookworm AS dependencies
COPY docker/worker.lock /
RUN python -m venv --without-pip /opt/care-sweep \
    && pip --python /opt/care-sweep/bin/python install --no-cache-dir --require-hashes -r worker.lock

FROM python:3.11-slim-bookworm AS wheel
COPY docker/build.lock /
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r build.lock
WORKDIR /source
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM dependencies AS program
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/care-sweep/bin/python install --no-cache-dir --no-deps --no-index --root /program /wheels/*.whl

FROM python:3.11-slim-bookworm
COPY --from=dependencies /opt/care-sweep /opt/care-sweep
# A compiler is what torch.compile builds a trial's kernels with. KubeRay may start Ray from a login shell, whose PATH is
# Debian's. Any user of group 0 may run the image, also one that /etc/passwd does not know.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --gid 0 --create-home --home-dir /home/care care \
    && chmod 0770 /home/care \
    && ln -s /opt/care-sweep/bin/ray /opt/care-sweep/bin/care-sweep /usr/local/bin/
COPY --from=program /program /
COPY docker/node_healthy.py docker/runner.sh /opt/care-sweep/
ENV PATH=/opt/care-sweep/bin:$PATH HOME=/home/care USER=care CARE_SWEEP_HOME=/home/care \
    PYTHONUNBUFFERED=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_memory_monitor_refresh_ms=0 \
    TORCHINDUCTOR_CACHE_DIR=/home/care/.cache/torchinductor
USER 10001
WORKDIR /home/care
VOLUME /home/care
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --retries=6 \
    CMD ["python", "/opt/care-sweep/node_healthy.py"]
ENTRYPOINT ["tini", "--"]
CMD ["ray", "--version"]
