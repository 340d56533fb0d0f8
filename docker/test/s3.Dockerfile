# A stand-in for the object store's image, for the containers test: moto's server, which keeps objects in memory.
FROM python:3.11-slim-bookworm
COPY requirements.lock /
RUN grep -o "^[a-z0-9.-]*==[^ ]*" requirements.lock >constraints.txt \
    && python -m venv /opt/moto \
    && /opt/moto/bin/pip install --no-cache-dir --constraint constraints.txt "moto[s3]" flask flask-cors
ENV PATH=/opt/moto/bin:$PATH HOME=/tmp
USER 10001
CMD ["python", "-m", "moto.server", "-H", "0.0.0.0", "-p", "9000"]
