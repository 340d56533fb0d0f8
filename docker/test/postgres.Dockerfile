# A stand-in for PostgreSQL's image, for the containers test, where no registry is reached: Debian's own PostgreSQL.
FROM python:3.11-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* \
    && usermod --uid 999 postgres \
    && chmod 3777 /run/postgresql \
    && install --directory --owner=999 --mode=0700 /var/lib/postgresql/data
COPY docker/test/postgres.sh /
ENV PATH=/usr/lib/postgresql/15/bin:$PATH
USER 999
CMD ["/postgres.sh"]
