# The HTTP service alone: neither torch nor Ray.
#     docker build -f docker/api.Dockerfile -t care-sweep-api .
FROM python:3.11-slim-bookworm AS dependencies
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/*
COPY docker/api.lock /
RUN python -m venv --without-pip /opt/care-sweep \
    && pip --python /opt/care-sweep/bin/python install --no-cache-dir --no-compile --require-hashes -r api.lock
# What a service does not need is left out: tests, headers, Arrow's Flight and S3 (storage is obstore's),
# the second and third copy of a library, symbols. docs/decisions/0011-images.md has the sizes.
WORKDIR /opt/care-sweep/lib/python3.11/site-packages
RUN rm -r numpy/f2py numpy/distutils numpy/_core/include pyarrow/include pyarrow/src sqlalchemy/testing \
    && find . -depth -type d -name tests -exec rm -r {} \; \
    && find . '(' -name '*.px[di]' -o -name '*.py[ix]' ')' -delete \
    && find pyarrow '(' -name '*_flight*' -o -name '*_s3*' -o -name 'libarrow_python*' -not -name '*.so.*00' ')' -delete \
    && find . -path ./numpy.libs -prune -o -path ./psycopg_binary.libs -prune -o -name '*.so' -exec strip --strip-unneeded {} + \
    && strip --strip-unneeded pyarrow/lib*.so.*

FROM python:3.11-slim-bookworm AS wheel
COPY docker/build.lock /
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r build.lock
WORKDIR /source
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM dependencies AS program
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/care-sweep/bin/python install --no-cache-dir --no-compile --no-deps --no-index --root /program \
        /wheels/*.whl

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --gid 0 --create-home --home-dir /home/care care \
    && chmod 0770 /home/care
COPY --from=dependencies /opt/care-sweep /opt/care-sweep
COPY --from=program /program /
# Any user of group 0 may run it. Byte code is kept where it may be written, not in layers (50 MB).
ENV PATH=/opt/care-sweep/bin:$PATH HOME=/home/care CARE_SWEEP_HOME=/home/care \
    PYTHONUNBUFFERED=1 PYTHONPYCACHEPREFIX=/home/care/.cache/pycache
USER 10001
WORKDIR /home/care
VOLUME /home/care
EXPOSE 8484
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --retries=6 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8484/healthz', timeout=8)"]
CMD ["python", "-m", "service", "--host", "0.0.0.0", "--port", "8484"]
