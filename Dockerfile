# One image, four names: each service is a target with its command, and the last one is the command line.
#
#   docker build --target task-registry  -t necrocode/task-registry  .
#   docker build --target repo-pool      -t necrocode/repo-pool      .
#   docker build --target artifact-store -t necrocode/artifact-store .
#   docker build -t necrocode/necrocode .
#
# BASE_IMAGE is any image with Python 3.11 or newer as python3, its venv module, and either git or apt-get.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
COPY . /src
RUN python3 -m venv /opt/necrocode \
 && /opt/necrocode/bin/pip install --no-cache-dir '/src[services,s3]'

FROM ${BASE_IMAGE} AS base
RUN command -v git >/dev/null \
 || (apt-get update && apt-get install -y --no-install-recommends git ca-certificates && rm -rf /var/lib/apt/lists/*)
COPY --from=build /opt/necrocode /opt/necrocode
RUN useradd --uid 10001 --create-home necrocode && install -d -o necrocode -g necrocode /data
USER necrocode
# The container's port is closed to others until it is published, so a token is not demanded inside: publish it to this
# machine alone (-p 127.0.0.1:8001:8001), or set NECROCODE_SERVICE_TOKEN.
ENV PATH=/opt/necrocode/bin:$PATH NECROCODE_STATE_DIR=/data NECROCODE_ALLOW_ANONYMOUS=1 PYTHONUNBUFFERED=1
VOLUME /data
ENTRYPOINT ["necrocode"]

FROM base AS task-registry
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/health', timeout=4)"]
CMD ["serve", "task-registry", "--host", "0.0.0.0"]

FROM base AS repo-pool
EXPOSE 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8002/health', timeout=4)"]
CMD ["serve", "repo-pool", "--host", "0.0.0.0"]

FROM base AS artifact-store
EXPOSE 8003
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8003/health', timeout=4)"]
CMD ["serve", "artifact-store", "--host", "0.0.0.0"]

FROM base AS necrocode
EXPOSE 8001 8002 8003
CMD ["serve", "all", "--host", "0.0.0.0"]
