# The program with the pinned packages, for NVIDIA GPUs and for machines without one: docs/docker.md says how to run it.
# torch brings its own CUDA libraries, so the image needs none; the driver is the host's, by NVIDIA's container toolkit.
FROM debian:bookworm-slim AS build

# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends --yes python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# On machines without a GPU: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/sft-recipes \
    && /opt/sft-recipes/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt .

FROM debian:bookworm-slim

# Triton compiles the launcher of each kernel when it is first run: it needs a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends --yes ca-certificates gcc libc6-dev make python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 trainer \
    && install --directory --owner trainer /project \
    && install --directory --mode 1777 /cache
COPY --from=build /opt/sft-recipes /opt/sft-recipes
# HOME and USER also for other users (docker run --user), who have none here.
ENV PATH=/opt/sft-recipes/bin:$PATH \
    HOME=/tmp \
    USER=trainer \
    HF_HOME=/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /project
ENTRYPOINT ["sft-recipes"]
CMD ["--help"]
