# wavewright for training on GPUs.
#
#   docker build -t wavewright .
#   docker run --gpus all --shm-size 8g -v "$PWD/data:/app/data" -v "$PWD/runs:/app/runs" wavewright \
#       deepspeed launch/train.py --hparams base
#
# Another base image (any Debian or Ubuntu): --build-arg BASE_IMAGE=...; without CUDA the extensions for the CPU are built.
ARG BASE_IMAGE=nvidia/cuda:12.8.1-cudnn-devel-ubuntu22.04
FROM ${BASE_IMAGE}

# The compilers stay: DeepSpeed builds what an unforeseen machine needs at run time.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 python3-dev python3-venv g++ ninja-build git tini \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 trainer && mkdir -p /app && chown trainer /app
USER trainer
WORKDIR /app

ENV VIRTUAL_ENV=/app/.venv \
    PATH=/app/.venv/bin:$PATH \
    TORCH_EXTENSIONS_DIR=/app/.torch_extensions \
    PYTHONUNBUFFERED=1
COPY --chown=trainer pyproject.toml README.md ./
COPY --chown=trainer hparams hparams
COPY --chown=trainer enhancer enhancer
COPY --chown=trainer data_shards data_shards
COPY --chown=trainer launch launch
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir -e '.[rooms]'

# Build DeepSpeed's extensions into the image, so that no run waits for a compiler.
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0"
RUN TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST}" python launch/build_extensions.py

# tini hands signals to every process of the group, so that stopping the container saves the run.
ENTRYPOINT ["tini", "-g", "--"]
CMD ["deepspeed", "launch/train.py", "--hparams", "base"]
