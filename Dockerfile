# Images of rvqlm, one for CPUs and one for NVIDIA GPUs:
#
#   docker build --target cpu  -t registry/rvqlm:1-cpu .
#   docker build --target cuda -t registry/rvqlm:1-cuda --build-arg EXTRAS=text,s3,gcs .
#
# The environment is installed in a stage of its own, of which only /opt/venv is taken. Versions are
# those of tools/constraints.txt. Nothing runs as root.
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
# extras of setup.py
ARG EXTRAS=text
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY setup.py pyproject.toml README.md LICENSE ./
COPY tools/constraints.txt tools/constraints.txt
COPY rvqlm rvqlm
RUN python -m venv /opt/venv

FROM build AS build-cpu
# from PyTorch's own index, without the libraries of CUDA
RUN /opt/venv/bin/pip install -c tools/constraints.txt \
      --index-url https://download.pytorch.org/whl/cpu torch
RUN /opt/venv/bin/pip install -c tools/constraints.txt ".[${EXTRAS}]"

FROM build AS build-cuda
# PyPI's torch brings the libraries of CUDA; the driver is the machine's
RUN /opt/venv/bin/pip install -c tools/constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON} AS base
# tini: signals reach what it runs, which as process 1 would not get them; g++: --compile, and the
# CPU's own kernels
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 rvqlm
COPY tools/launch /opt/rvqlm/tools/launch
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /home/rvqlm
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["rvqlm", "--help"]

FROM base AS cpu
COPY --from=build-cpu /opt/venv /opt/venv

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/venv /opt/venv
